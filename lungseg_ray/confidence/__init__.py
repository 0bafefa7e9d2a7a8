"""Confidence: how good a predicted mask is expected to be, without a true one."""
