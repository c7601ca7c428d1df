"""The stages. Importing any of them first sets what torch's libraries read once, when loaded.

OpenMP sleeps instead of spinning: two stages side by side, or a stage beside any other busy
process, otherwise burn their cores in waiting threads (a training step was measured five to ten
times slower). oneDNN keeps fewer compiled kernels: one per shape adds up to hundreds of megabytes
where batches come in many lengths. Whoever set these variables already is left in peace.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
