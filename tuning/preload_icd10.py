"""The ICD-10-CM table, read once in the server that trials are forked from."""

from evaluation.tasks.icd10 import table

table().by_split  # noqa: B018
