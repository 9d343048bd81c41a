"""What is asked of a trained auto-encoder, one file per question.

`reconstruction`: how close is the output to the input? `likelihood`: how probable are unseen images?
`codes`: how much of a discrete codebook is in use? `probe`: do the latents know the class?
`baselines`: what would PCA have reached with as many numbers, or as many bits? `pictures`: what does it look like?
`evaluate` asks whichever of these questions a model can answer and gathers the answers in one dictionary.

Everything but `evaluate` is pure functions over tensors and arrays and knows no particular variant.
"""
