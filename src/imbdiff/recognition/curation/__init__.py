"""Curation: which synthetic images are kept. Scores by a working classifier, policies over the scores."""

from imbdiff.recognition.curation.choice import Curated, curate
from imbdiff.recognition.curation.policies import POLICIES, REASONS, Policy, in_words, parse_policy
from imbdiff.recognition.curation.scores import Scores, score
from imbdiff.recognition.curation.space import RealSpace, Zones

__all__ = [
    "POLICIES",
    "REASONS",
    "Curated",
    "Policy",
    "RealSpace",
    "Scores",
    "Zones",
    "curate",
    "in_words",
    "parse_policy",
    "score",
]
