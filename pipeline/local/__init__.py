"""A local stand-in for the AWS services and Aurora, for a laptop."""
