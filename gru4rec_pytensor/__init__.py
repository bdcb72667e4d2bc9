"""What stands behind the scripts `gru4rec`, `evaluation`, `baselines`, `preprocess_rsc15` and `run_experiments`."""

__version__ = '0.1.0'
