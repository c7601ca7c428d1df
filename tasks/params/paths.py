"""Where what a run leaves lies, written once for the stages and for the flow that shows it.

All paths are relative to the root of the checkout. They stand beside params.yaml's sections since
those are all that flows/ may know of tasks/.
"""

from pathlib import Path

ARTIFACTS = Path("artifacts")
"""Outputs of the stages: tracked by DVC, ignored by git."""
TIMINGS = ARTIFACTS / "timings"
"""One JSON file per stage, time and memory of its last run; no DVC output."""
DATA_FLOW = ARTIFACTS / "ingest" / "metrics.json"
DATA_DOCS = ARTIFACTS / "validate" / "data_docs" / "index.html"
DECISION = ARTIFACTS / "gate" / "decision.json"
REPORT = ARTIFACTS / "report" / "index.html"
MODEL_CARD = ARTIFACTS / "report" / "model_card.md"
BASE = ARTIFACTS / "backbone" / "base"
"""Origin and licence of the decoder, and the terms that go with every copy of its weights."""
BASE_RECORD = BASE / "base.json"
LADDER = ARTIFACTS / "report" / "ladder.json"

OUTSIDE = Path("outside.json")
"""Fingerprints of what stages read from where neither DVC nor git looks; kept in git."""

STATE = Path(".samovar")
"""What a run keeps for itself: locks, checkpoints, caches, Prefect's database; never an output."""
CHECKPOINTS = STATE / "checkpoints"
MICRO_BATCHES = STATE / "micro_batch_tokens.json"
"""What was found to fit, by machine and model."""
CORPORA = STATE / "corpora"
"""Arrow files of the trainings that are under way."""
LLM_CACHE = STATE / "llm-cache" / "answers.sqlite"
PUBLISHED = STATE / "published.json"
"""What the last publication did."""
