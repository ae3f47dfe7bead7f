"""A laptop's stand-in for the AWS services."""
