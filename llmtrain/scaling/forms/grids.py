"""Where starts are looked for."""

import numpy as np

EXPONENTS = tuple(np.geomspace(0.03, 1.5, 18).tolist())
