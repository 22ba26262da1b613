"""Why a claim waits: which device could serve which request, in words. Pure."""
