"""What is asked of a trained auto-encoder, one file per question.

`reconstruction`: how close is the output to the input? `likelihood`: how probable are unseen images?
`codes`: how much of a discrete codebook is in use? `probe`: do the latents know the class?
`baselines`: what would PCA have reached with as many numbers, or as many bits? `pictures`: what does it look like?
`factors`: what is known of the images? `disentanglement`: does each dimension stand for one factor of the data?
`clustering`: are clusters classes?
`anomaly`: does a detector find what is not normal? `tables`: how well are rows of tables rebuilt?
`latent_report`: what does each part of the code stand for? A page for people.
`evaluate` asks whichever of these questions a model of images can answer and gathers the answers in one dictionary.

Of text: `summaries`: how good are they, and do they hold what is needed to restore the text? `readability`: do they
read like real ones? `extractive`: how good would words taken from the text be, without a model?

Of speech: `voice_conversion`: do conversions take the voice and keep the word, and what do the two parts of the code
know of each other? `speech_judges`: who decides that. `speech_codes`: are discrete codes like phones?
`mel_pictures`: what does it look like?

Everything but `evaluate`, `latent_report`, and what gathers the answers at the end of `summaries`, `voice_conversion`
and `speech_codes`, is functions over tensors, arrays and strings and knows no particular variant.
"""
