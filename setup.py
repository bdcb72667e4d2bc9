"""Metadata of the package; everything else is in the modules themselves."""
import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.findall(r"__version__ = '(.+)'", (ROOT / 'gru4rec_pytensor' / '__init__.py').read_text())[0]

setup(
    name='gru4rec-pytensor',
    version=VERSION,
    description='Session-based Recommendations with Recurrent Neural Networks (GRU4Rec, ICLR 2016) on PyTensor',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='MIT',
    project_urls={'Paper': 'https://arxiv.org/abs/1511.06939'},
    keywords=['recommender systems', 'session-based recommendation', 'recurrent neural networks', 'GRU4Rec',
              'PyTensor'],
    classifiers=['Development Status :: 4 - Beta', 'Intended Audience :: Education',
                 'Intended Audience :: Science/Research', 'Operating System :: POSIX :: Linux',
                 'Programming Language :: Python :: 3', 'Programming Language :: Python :: 3.11',
                 'Programming Language :: Python :: 3.12', 'Programming Language :: Python :: 3.13',
                 'Topic :: Scientific/Engineering :: Artificial Intelligence', 'Typing :: Typed'],
    python_requires='>=3.11',
    py_modules=['gru4rec', 'evaluation', 'baselines', 'preprocess_rsc15', 'run_experiments'],
    packages=find_packages(include=['gru4rec_pytensor*']),
    package_data={'gru4rec_pytensor': ['py.typed', 'experiments/published_2023.csv']},
    entry_points={'console_scripts': ['gru4rec=gru4rec_pytensor.cli:main', 'gru4rec-preprocess=preprocess_rsc15:main',
                                      'gru4rec-experiments=run_experiments:main']},
    # Upper bounds where private names are used: docs/private_names.md says which, and how to widen the bounds.
    install_requires=['pytensor>=3.0.7,<3.4', 'numpy', 'numba<0.69', 'llvmlite<0.51', 'scipy', 'pandas',
                      'threadpoolctl', 'filelock>=4'],
    extras_require={'experiments': ['tqdm', 'optuna<5.1', 'sqlalchemy', 'matplotlib'],
                    'cluster': ['distributed<2026.9'], 'postgresql': ['psycopg[binary]'],
                    'jax': ['jax<0.13'], 'gpu': ['jax[cuda12]<0.13'],
                    'test': ['pytest', 'pytest-xdist', 'pytest-cov', 'tqdm', 'optuna<5.1', 'sqlalchemy', 'matplotlib',
                             'distributed<2026.9', 'psycopg[binary]', 'jax<0.13', 'nbformat', 'ruff', 'mypy']},
)
