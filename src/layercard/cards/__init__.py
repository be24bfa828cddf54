"""Layer Cards: what probing and short fine-tunes found for one model and dataset, to be shared and consulted."""
