"""Carry out a plan: read ahead, compute, write behind, all at once and in bounded memory."""
