"""One module for each verb of `dynaurora`: its arguments, and a run that returns an Outcome. The list is in
`pipeline.cli`.
"""
