"""The exceptions that a check can raise."""


class DetectionError(Exception):
    """A file could not be checked; base class of all errors in this module."""


class SourceNotFoundError(DetectionError, FileNotFoundError):
    """The file does not exist, or is a folder, pipe or device."""


class SourceUnreadableError(DetectionError, ValueError):
    """The source is not a video or picture, or is damaged, or its frames have a wrong format."""


class SourceTooLargeError(DetectionError, ValueError):
    """The source has more pixels than the settings allow."""


class SourceChangedError(DetectionError, OSError):
    """The file changed while it was read, so its checksum may not match the scored content."""


class ModelError(DetectionError, ValueError):
    """The model file is missing, damaged or of another kind."""


class CancelledError(DetectionError):
    """The caller cancelled the check."""
