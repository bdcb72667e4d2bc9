"""Metadata of the package; everything else is in the modules themselves."""
from pathlib import Path

from setuptools import setup

setup(
    name='gru4rec-pytensor',
    version='0.1.0',
    description='Session-based Recommendations with Recurrent Neural Networks (GRU4Rec, ICLR 2016) on PyTensor',
    long_description=Path(__file__).with_name('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='MIT',
    python_requires='>=3.11',
    py_modules=['gru4rec', 'backends', 'evaluation', 'baselines', 'preprocess_rsc15', 'run_experiments', 'search',
                'claims', 'storage', 'clicklog', 'progress', 'report', 'figures', 'cli'],
    entry_points={'console_scripts': ['gru4rec=cli:main', 'gru4rec-preprocess=preprocess_rsc15:main',
                                      'gru4rec-experiments=run_experiments:main']},
    install_requires=['pytensor>=3.0.3,<4', 'numpy', 'pandas', 'threadpoolctl'],
    extras_require={'experiments': ['tqdm', 'optuna', 'matplotlib'], 'jax': ['jax'], 'gpu': ['jax[cuda12]'],
                    'test': ['pytest', 'pytest-xdist', 'pytest-cov', 'tqdm', 'optuna', 'matplotlib', 'jax', 'nbclient',
                             'nbformat', 'ipykernel', 'ruff', 'mypy']},
)
