"""What a check can raise: a class for each kind of failure."""


class DetectionError(Exception):
    """A file could not be checked; each kind of failure has a class below this one."""


class SourceNotFoundError(DetectionError, FileNotFoundError):
    """There is no such file, or it is a folder, pipe or device."""


class SourceUnreadableError(DetectionError, ValueError):
    """It is neither a video nor a picture, is damaged, or its frames have an odd shape or type."""


class SourceTooLargeError(DetectionError, ValueError):
    """It has more pixels than the settings allow."""


class SourceChangedError(DetectionError, OSError):
    """The file changed while it was read, so its check sum would not be of what was scored."""


class ModelError(DetectionError, ValueError):
    """The model cannot be used: it is missing, damaged or of another kind."""


class CancelledError(DetectionError):
    """The caller asked to stop."""
