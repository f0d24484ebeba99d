"""What every trial imports, imported once in the server that trials are forked from."""

import warnings

warnings.simplefilter("ignore")

import accelerate  # noqa: E402, F401
import transformers.models.llama.modeling_llama  # noqa: E402, F401

import adapters.files  # noqa: E402, F401
import engine.torch_engine  # noqa: E402, F401
import evaluation.measures  # noqa: E402, F401
import tuning.trial  # noqa: E402, F401
