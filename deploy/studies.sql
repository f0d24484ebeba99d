-- Optuna's tables have a database of their own: in one with MLflow's, each would break the other's.
CREATE DATABASE studies OWNER graftline;
