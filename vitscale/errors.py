"""Errors that a user can mend. Each message says where, what was found, what is allowed and what to do."""

from data_pipeline.errors import DataError


class UserError(ValueError):
    """Something the user gave is wrong; the message alone must be enough to mend it."""


class RecipeError(UserError):
    """A recipe or an override is wrong, or does not fit the machine it is started on."""


class LaunchError(UserError):
    """Processes cannot be started as asked, or died."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or of another run."""


class DivergedError(UserError):
    """Too many losses or gradients were not finite."""


class ModelError(UserError):
    """Weights do not fit the model they are given to."""


class TrackingError(UserError):
    """The MLflow store or registry does not have, or does not take, what was asked."""


USER_ERRORS = (UserError, DataError)
FINAL = (RecipeError, LaunchError, ModelError, DivergedError)  # another start would end the same way
