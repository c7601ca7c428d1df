"""The stages. Importing any of them first sets what libraries read once, when loaded.

OpenMP sleeps instead of spinning: two stages side by side, or a stage beside any other busy
process, otherwise burn their cores in waiting threads (a training step was measured five to ten
times slower). oneDNN and torch's layer over it keep fewer compiled kernels: where batches come in
many lengths, one per shape was measured to take 0.9 GiB of a training's 2.4, and saved no time.
Large tensors lie on large pages: a training takes a tenth less memory and is never slower.
Whoever set these variables already is left in peace.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
os.environ.setdefault("LRU_CACHE_CAPACITY", "64")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
