"""Evaluation of open answers by rubrics: answers, judgements, scores."""
