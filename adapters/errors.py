"""What can go wrong with a backbone or an adapter's files.

AdapterError (ValueError)
├── UnknownBackbone        no built-in name, directory, GGUF file or Hugging Face id of that name
├── BackboneMismatch       an adapter was fitted on other weights
├── DamagedAdapter         a file is missing, cut short, not finite or not what its config says
└── RefusedAdapter         a setting that breaks a rule of this system (an init that rewrites the base, ...)
"""


class AdapterError(ValueError):
    """The root of the errors of this package."""


class UnknownBackbone(AdapterError):
    pass


class BackboneMismatch(AdapterError):
    pass


class DamagedAdapter(AdapterError):
    pass


class RefusedAdapter(AdapterError):
    pass
