"""The one exception of a build that cannot be made."""


class CannotBuild(Exception):
    """Carries one sentence: what is missing, and the command that mends it."""
