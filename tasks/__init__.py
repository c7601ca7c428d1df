"""The stages. Importing any of them first tells OpenMP to sleep instead of spin.

Two stages side by side, or a stage beside any other busy process, otherwise burn their cores in
spinning threads: a training step was measured five to ten times slower. OpenMP reads the variable
once, when torch is loaded, so it must be set before that; whoever set it already is left in peace.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
