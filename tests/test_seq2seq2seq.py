"""The seq2seq2seq summarizer: what its mathematics promises, and what it refuses."""

import itertools

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch.nn import functional as F
from transformers import T5Config, T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from hf_autoencoders.models.configuration_seq2seq2seq import PointerT5Config, Seq2Seq2SeqConfig
from hf_autoencoders.models.modeling_seq2seq2seq import Seq2Seq2SeqForConditionalGeneration
from hf_autoencoders.models.pointer_t5 import PointerT5ForConditionalGeneration, forbidden_tokens
from hf_autoencoders.models.text_discriminators import gradient_penalty, masked_mean

SIZES = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}
VOCAB = 30
WORD_STARTS = torch.arange(VOCAB).ge(10) & torch.arange(VOCAB).lt(22)  # 10 to 21 begin a word, 3 to 9 and 22 on do not


def tiny(kind="none", vocab_size=VOCAB, copy_head=True, seed=0, **fields):
    sizes = {**SIZES, "vocab_size": vocab_size, "copy_head": copy_head}
    config = Seq2Seq2SeqConfig(
        summarizer={**sizes, "countdown_size": 8},
        reconstructor=sizes,
        discriminator={"kind": kind, "vocab_size": vocab_size, "hidden_size": 12},
        **{"max_summary_tokens": 10, **fields},
    )
    torch.manual_seed(seed)
    model = Seq2Seq2SeqForConditionalGeneration(config)
    for part in (model.summarizer, model.reconstructor):
        if vocab_size == VOCAB:
            part.initials.copy_(WORD_STARTS)
        if part.countdown is not None:
            torch.nn.init.normal_(part.countdown.weight)
        torch.nn.init.normal_(part.lm_head.weight, std=0.5)
    return model.eval()


def texts(rows=4, length=9, seed=0, vocab_size=VOCAB):
    """Token ids and mask, of unequal lengths, each with its end."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, vocab_size, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(rows):
        end = length - 1 - row % 3
        ids[row, end], ids[row, end + 1 :], mask[row, end + 1 :] = 1, 0, 0
    return ids, mask


def noise(model, rows=4, length=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = model.config.max_summary_tokens
    return {
        "noise": torch.rand(rows, size, model.config.summarizer.vocab_size, generator=generator),
        "dropout_noise": torch.rand(rows, length, generator=generator),
    }


def gradients(model, loss):
    model.zero_grad()
    loss.backward(retain_graph=True)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}


# ---- the pointer T5


def test_without_its_options_it_is_a_t5():
    torch.manual_seed(0)
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=VOCAB, decoder_start_token_id=0, **SIZES)).eval()
    ours = PointerT5ForConditionalGeneration(PointerT5Config(vocab_size=VOCAB, **SIZES)).eval()
    missing, unexpected = ours.load_state_dict(t5.state_dict(), strict=False)
    assert missing == ["initials"] and not unexpected
    ids, mask = texts()
    labels = ids[:, :5].contiguous()
    one, other = t5(ids, mask, labels=labels), ours(ids, mask, labels=labels)
    torch.testing.assert_close(one.logits, other.logits, rtol=0, atol=0)
    torch.testing.assert_close(one.loss, other.loss)
    options = {"attention_mask": mask, "max_new_tokens": 6, "num_beams": 3}
    assert torch.equal(t5.generate(ids, **options), ours.generate(ids, **options))


def test_copy_head_gives_a_distribution_and_copies_what_it_attends_to():
    model = tiny().summarizer
    ids, mask = texts()
    with torch.no_grad():
        log_probs = model(ids, mask, decoder_input_ids=ids[:, :4]).logits
        torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(4, 4), atol=1e-5, rtol=0)
        model.copy_head.gate.bias.fill_(-100.0)
        model.copy_head.gate.weight.zero_()
        closed = model(ids, mask, decoder_input_ids=ids[:, :4]).logits
        model.copy_head.gate.bias.fill_(100.0)
        opened = model(ids, mask, decoder_input_ids=ids[:, :4]).logits.exp()
        model.config.copy_head, head = False, model.copy_head
        model.copy_head = None
        plain = model(ids, mask, decoder_input_ids=ids[:, :4]).logits
    assert head is not None
    torch.testing.assert_close(closed, plain.log_softmax(-1).clamp_min(torch.tensor(1e-9).log()), atol=1e-4, rtol=1e-4)
    in_source = F.one_hot(ids * mask, VOCAB).amax(1)[:, None].bool()  # padding has no attention
    in_source[..., 0] = False
    assert opened.masked_select(~in_source).max() < 1e-6


def test_copying_soft_tokens_equals_copying_ids():
    model = tiny().reconstructor
    ids, mask = texts()
    soft = F.one_hot(ids, VOCAB).float()
    by_ids = model(ids, mask, decoder_input_ids=ids).logits
    by_rows = model(
        inputs_embeds=soft @ model.shared.weight, attention_mask=mask, decoder_input_ids=ids, decoder_source_ids=soft
    ).logits
    torch.testing.assert_close(by_ids, by_rows, atol=1e-5, rtol=1e-5)


def test_copying_goes_on_where_the_last_token_stands():
    head = tiny().summarizer.copy_head
    source = torch.tensor([[12, 5, 6, 13, 14, 12, 7]])  # three words begin: 12 5 6, 13, 14 and 12 7
    begins = WORD_STARTS[source]
    last, previous = torch.tensor([[0, 12, 6, 13, 29, 12]]), torch.tensor([[-1, 0, 5, 6, 3, 14]])
    with torch.no_grad():
        places = head.places(last, previous, source, begins)[0]
        jump, stay = head.jump.softmax(0), head.stay.sigmoid()
    expected = torch.zeros(6, 7)
    expected[0] = jump[:7] * begins[0]  # the start: any beginning of a word
    first = 31 / 32  # 12 stands twice, the first time with the start before it as before the last token
    expected[1, 1], expected[1, 6] = stay * first, stay / 32
    expected[1, 3:6] = (1 - stay) * first * jump[2:5]
    expected[2, 3:6] = jump[:3]
    expected[3, 4:6] = jump[:2]
    expected[5, 1], expected[5, 6] = stay / 32, stay * first  # after 14 it is the other 12
    expected[5, 3:6] = (1 - stay) / 32 * jump[2:5]
    torch.testing.assert_close(places, expected)  # and nothing where the last token is not in the source
    soft = F.one_hot(source, VOCAB).float()
    torch.testing.assert_close(head.places(last, previous, soft, begins)[0], expected)


def test_salience_is_the_log_odds_of_the_pools():
    model = tiny()
    texts_counts, summary_counts = torch.full((VOCAB,), 100.0), torch.full((VOCAB,), 10.0)
    summary_counts[12], summary_counts[13] = 80.0, 0.0
    model.set_salience(texts_counts, summary_counts)
    salience = model.summarizer.copy_head.salience
    share = summary_counts.sum() / texts_counts.sum()
    expected = torch.log(((summary_counts + share) / summary_counts.sum()) / ((texts_counts + 1) / texts_counts.sum()))
    torch.testing.assert_close(salience.detach(), expected.clamp(-4, 4))
    assert salience[12] > salience[14] > salience[13]
    ids, mask = texts()
    before = model(ids, mask, decoder_input_ids=ids[:, :1] * 0).logits
    with torch.no_grad():
        salience[ids[0, 0]] += 3
    assert (model(ids, mask, decoder_input_ids=ids[:, :1] * 0).logits != before)[0].any()


def test_selector_learns_what_is_kept_and_bounds_what_is_copied():
    torch.manual_seed(0)
    head = tiny().summarizer.copy_head
    source = torch.tensor([[12, 5, 13, 14, 15, 6]])
    begins, mask, states = WORD_STARTS[source], torch.tensor([[1, 1, 1, 1, 1, 0]]), torch.randn(1, 6, SIZES["d_model"])
    with torch.no_grad():
        head.salience[12:16] = torch.tensor([2.0, -1.0, 1.0, 0.0])
        loss = head.selection_loss(states, mask, source, begins, torch.tensor([[12, 14, -100]]))
        odds = torch.tensor([2.0, -1.0, 1.0, 0.0])
        expected = F.binary_cross_entropy_with_logits(odds, torch.tensor([1.0, 0.0, 1.0, 0.0]))
        inputs = torch.randn(1, 2, SIZES["d_model"])
        last, previous = torch.tensor([[0, 12]]), torch.tensor([[-1, 0]])
        attention, _ = head(inputs, inputs, states, mask, source, begins, last, previous, torch.tensor([2]))
        everything, _ = head(inputs, inputs, states, mask, source, begins, last, previous)
    torch.testing.assert_close(loss, expected)
    assert attention[0, :, [2, 4, 5]].max() == 0  # 13 and 15 are the least likely words, the last place is padding
    assert attention[0, :, [0, 1, 3]].min() > 0  # the likeliest two, and the rest of a word
    assert everything[0, :, :5].min() > 0


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("ratio", [0.0, 1.5])
def test_generation_with_cache_equals_generation_without_and_teacher_forcing(beams, ratio):
    model = tiny()
    model.summarizer.config.selection_ratio = ratio
    ids, mask = texts()
    options = {"attention_mask": mask, "num_words": torch.tensor([1, 2, 3, 4]), "num_beams": beams}
    cached = model.generate(ids, return_dict_in_generate=True, output_scores=True, **options)
    without = model.generate(ids, use_cache=False, **options)
    assert torch.equal(cached.sequences, without)
    assert torch.equal(cached.sequences, model.summarizer.generate(ids, model.generation_config, **options))
    if beams == 1:  # each score that was not forbidden is what one parallel pass over the result gives
        parallel = model(
            ids, mask, decoder_input_ids=cached.sequences[:, :-1], num_words=options["num_words"]
        ).logits.detach()
        for step, scores in enumerate(cached.scores):
            live = torch.isfinite(scores)
            torch.testing.assert_close(scores[live], parallel[:, step][live], atol=1e-4, rtol=1e-4)


def test_beam_search_finds_the_best_summary():
    """With as many beams as there are summaries, the best of all of them by brute force."""
    model = tiny(vocab_size=6)  # two words of one token each from 2..5
    ids, mask = texts(1, 5, vocab_size=6)
    found = model.generate(ids, attention_mask=mask, num_words=2, num_beams=16, length_penalty=0.0)[0].tolist()
    candidates = torch.tensor([[0, *pair, 1] for pair in itertools.product(range(2, 6), repeat=2)])
    with torch.no_grad():
        scores = model(
            ids.expand(16, -1),
            mask.expand(16, -1),
            decoder_input_ids=candidates[:, :-1],
            num_words=torch.full((16,), 2),
        ).logits.log_softmax(-1)
    totals = scores[:, :2].gather(-1, candidates[:, 1:3, None]).sum((1, 2))  # the end is forced, beams count it too
    totals = totals + scores[:, 2, 1]
    assert found == candidates[totals.argmax()].tolist()


# ---- length


def test_summaries_have_the_number_of_words_asked_for():
    model = tiny(max_summary_tokens=40)
    ids, mask = texts()
    wanted = torch.tensor([1, 3, 5, 8])
    for options in ({}, {"num_beams": 3}, {"do_sample": True}):
        summary = model.generate(ids, attention_mask=mask, num_words=wanted, **options)
        finished = (summary == 1).any(1)
        words = model.summarizer.count_words(summary[:, 1:])
        assert finished.any() and torch.equal(words[finished], wanted[finished])


def test_the_countdown_is_read():
    model = tiny()
    ids, mask = texts()
    decoder_input_ids = torch.tensor([[0, 12, 5, 13]]).expand(4, -1)
    remaining = model.summarizer.remaining_words(decoder_input_ids, torch.full((4,), 6))
    assert remaining[0].tolist() == [6, 5, 5, 4]
    one, other = (
        model(ids, mask, decoder_input_ids=decoder_input_ids, num_words=torch.full((4,), n)).logits for n in (6, 3)
    )
    assert (one - other).abs().max() > 1e-3


def test_forbidden_tokens():
    starts = torch.tensor([False, False, True, False, True])
    rows = forbidden_tokens(starts, torch.tensor([2, 1, 0]), torch.tensor([True, False, False]), [1], 0)
    assert rows.tolist() == [
        [True, True, False, True, False],  # first token: must begin a word (and never padding, 0)
        [True, True, False, False, False],  # a word is still to come: no end
        [True, False, True, False, True],  # none left: the last word may go on, or end
    ]


# ---- auto-encoding


@pytest.mark.parametrize("ratio", [0.0, 1.5])
def test_evaluation_samples_what_generate_writes_greedily(ratio):
    model = tiny()
    model.summarizer.config.selection_ratio = ratio
    ids, mask = texts()
    output = model(ids, mask, num_words=torch.full((4,), 3))
    generated = model.generate(ids, attention_mask=mask, num_words=3)[:, 1:]
    width = max(generated.shape[1], output.codes.shape[1])
    pad = lambda x: F.pad(x, (0, width - x.shape[1]))  # noqa: E731
    assert torch.equal(pad(output.codes), pad(generated))
    own = model(ids, mask, summary_ids=output.codes)
    torch.testing.assert_close(own.reconstruction_loss, output.reconstruction_loss, atol=1e-5, rtol=1e-5)


def test_the_pass_with_gradients_copies_from_the_words_that_sampling_did():
    """With a selector, for another number of words than the default: what was sampled has to be possible."""
    model = tiny(entropy_weight=1.0, estimator="reinforce").train()
    model.summarizer.config.selection_ratio = 1.0
    with torch.no_grad():
        model.summarizer.copy_head.gate.weight.zero_()
        model.summarizer.copy_head.gate.bias.fill_(20.0)  # copies alone
        model.summarizer.copy_head.salience.normal_()
    ids, mask = texts(length=16, rows=4)
    seen = []
    model.summarizer.copy_head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[-1].tolist()))
    model(ids, mask, num_words=torch.tensor([1, 2, 3, 4]), **noise(model, length=16))
    assert len(seen) > 3 and all(limits == [1, 2, 3, 4] for limits in seen)


def test_samples_follow_the_summarizers_distribution():
    model = tiny(vocab_size=6).train()
    ids, mask = texts(1, 5, vocab_size=6)
    rows = 4000
    many = {"input_ids": ids.expand(rows, -1), "attention_mask": mask.expand(rows, -1)}
    draws = noise(model, rows, 5)
    with torch.no_grad():
        codes = model(**many, num_words=torch.ones(rows, dtype=torch.long), **draws).codes[:, 0]
        start = torch.zeros(1, 1, dtype=torch.long)
        logits = model.summarizer(ids, mask, decoder_input_ids=start, decoder_num_words=torch.ones(1).long()).logits
    expected = logits[0, 0].masked_fill(torch.tensor([True, True, False, False, False, False]), -torch.inf).softmax(-1)
    frequencies = torch.bincount(codes, minlength=6) / rows
    torch.testing.assert_close(frequencies, expected, atol=0.03, rtol=0)


@pytest.mark.parametrize("estimator", ["straight_through", "reinforce"])
def test_reconstruction_alone_teaches_the_summarizer(estimator):
    model = tiny(estimator=estimator).train()
    ids, mask = texts()
    output = model(ids, mask, **noise(model))
    loss = output.loss if estimator == "reinforce" else output.reconstruction_loss
    reached = gradients(model, loss)
    assert "summarizer.encoder.block.0.layer.0.SelfAttention.q.weight" in reached
    assert "summarizer.copy_head.query.weight" in reached and "summarizer.countdown.weight" in reached
    assert "reconstructor.decoder.block.1.layer.1.EncDecAttention.q.weight" in reached


def test_score_function_gradient_is_the_gradient_of_the_expected_loss():
    """All four summaries of one word are enumerated; 20,000 samples must agree with the exact gradient."""
    model = tiny(vocab_size=6, estimator="reinforce", word_dropout=0.0).train()
    ids, mask = texts(1, 5, vocab_size=6)
    parameter = model.summarizer.copy_head.gate.weight
    start, one = torch.zeros(1, 1, dtype=torch.long), torch.ones(1, dtype=torch.long)
    logits = model.summarizer(ids, mask, decoder_input_ids=start, decoder_num_words=one).logits[0, 0]
    probabilities = logits[2:].softmax(-1)
    with torch.no_grad():
        losses = torch.stack(
            [model(ids, mask, summary_ids=torch.tensor([[word, 1]])).reconstruction_loss for word in range(2, 6)]
        )
    exact = torch.autograd.grad((probabilities * losses).sum(), parameter)[0]
    rows = 20_000
    many = {"input_ids": ids.expand(rows, -1), "attention_mask": mask.expand(rows, -1)}
    model.config.max_summary_tokens = 2  # the word and the end: forced, so its log-probability is 0
    torch.manual_seed(0)
    output = model(**many, num_words=torch.ones(rows, dtype=torch.long), noise=torch.rand(rows, 2, 6))
    # the mean is over tokens: the word and the end
    estimated = torch.autograd.grad(output.policy_loss * 2, parameter)[0]
    assert F.cosine_similarity(exact.flatten(), estimated.flatten(), dim=0) > 0.98
    assert 0.8 < estimated.norm() / exact.norm() < 1.2


# ---- the discriminator


@pytest.mark.parametrize("kind", ["wgan_gp", "critic"])
@pytest.mark.parametrize("estimator", ["straight_through", "reinforce"])
def test_each_player_has_gradients_of_its_own_loss_only(kind, estimator):
    model = tiny(kind, estimator=estimator).train()
    ids, mask = texts()
    output = model(ids, mask, target_ids=texts(seed=5)[0], **noise(model))
    own = gradients(model, output.discriminator_loss)
    assert own and all(name.startswith("discriminator.") for name in own)
    others = gradients(model, output.loss - output.discriminator_loss)
    assert others and not any(name.startswith("discriminator.") for name in others)
    players = model.player_parameters()
    assert {p for player in players.values() for p in player} == set(model.parameters())
    assert not set(players["autoencoder"]) & set(players["discriminator"])


def test_language_model_prior_is_a_divergence_and_stays_frozen():
    model = tiny("language_model").train()
    ids, mask = texts()
    output = model(ids, mask, **noise(model))
    assert output.prior_loss > 0
    assert not any(name.startswith("discriminator.") for name in gradients(model, output.loss))
    sentence = texts(seed=3)[0]
    trained = model(target_ids=sentence)
    log_probs = model.discriminator(model.discriminator.embed(F.one_hot(sentence, VOCAB)), sentence != 0)
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones_like(log_probs[..., 0]), atol=1e-5, rtol=0)
    nats = -log_probs.gather(-1, sentence[..., None])[..., 0][sentence != 0].mean()
    torch.testing.assert_close(trained.loss, nats)
    assert all(name.startswith("discriminator.") for name in gradients(model, trained.loss))


def test_language_model_and_prefix_critic_do_not_see_what_comes_later():
    for kind in ("language_model", "critic"):
        judge = tiny(kind).discriminator
        tokens = F.one_hot(texts()[0], VOCAB)
        changed = tokens.clone()
        changed[:, 5] = F.one_hot(torch.tensor(29), VOCAB)
        one, other = (judge(judge.embed(rows), None) for rows in (tokens, changed))
        until = 6 if kind == "language_model" else 5  # a language model's output at a place is about that very token
        torch.testing.assert_close(one[:, :until], other[:, :until], rtol=0, atol=0)
        assert not torch.equal(one[:, until:], other[:, until:])


def test_gradient_penalty_of_a_linear_critic():
    """|gradient| of w . x is |w| everywhere: the penalty is (|w| - 1)^2, whatever the rows and the mixture."""
    weight = torch.tensor([3.0, 4.0])
    real, fake = torch.randn(5, 1, 2), torch.randn(5, 1, 2)
    penalty = gradient_penalty(lambda x, mask: x @ weight, real, fake, torch.ones(5, 1), torch.rand(5))
    torch.testing.assert_close(penalty, torch.tensor(16.0))


def test_sequence_critic_ignores_padding():
    judge = tiny("wgan_gp").discriminator
    ids, mask = texts(1)
    long_ids, long_mask = F.pad(ids, (0, 3), value=17), F.pad(mask, (0, 3))
    one = judge(judge.embed(F.one_hot(ids, VOCAB)), mask)
    other = judge(judge.embed(F.one_hot(long_ids, VOCAB)), long_mask)
    torch.testing.assert_close(one, other)


def test_masked_mean():
    values, mask = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1, 1], [1, 0]])
    assert masked_mean(values, mask) == 2.0


def test_masked_text_gives_what_the_short_text_gives():
    model = tiny("critic")
    ids, mask = texts(1)
    num_words = torch.tensor([3])
    one = model(ids, mask, num_words=num_words)
    other = model(F.pad(ids, (0, 4)), F.pad(mask, (0, 4)), num_words=num_words)
    assert torch.equal(one.codes, other.codes)
    torch.testing.assert_close(one.loss, other.loss, atol=1e-5, rtol=1e-5)
    decoder_input_ids = torch.tensor([[0, 12, 13]])
    short = model(ids, mask, decoder_input_ids=decoder_input_ids).logits
    long = model(F.pad(ids, (0, 4)), F.pad(mask, (0, 4)), decoder_input_ids=decoder_input_ids).logits
    torch.testing.assert_close(short, long, atol=1e-5, rtol=1e-5)


# ---- building


def test_from_pretrained_t5(tmp_path):
    torch.manual_seed(0)
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=VOCAB, **SIZES)).eval()  # as t5-small: no start token is set
    t5.save_pretrained(tmp_path)
    selector = {"selection_weight": 1.0, "selection_ratio": 2.0}  # of the summarizer alone
    model = Seq2Seq2SeqForConditionalGeneration.from_pretrained_t5(tmp_path, max_summary_tokens=7, summarizer=selector)
    ids, mask = texts()
    decoder_input_ids = F.pad(ids[:, :3], (1, 0))
    expected = t5(ids, mask, decoder_input_ids=decoder_input_ids).logits
    for part in (model.summarizer, model.reconstructor):  # the countdown begins at zero
        torch.testing.assert_close(part(ids, mask, decoder_input_ids=decoder_input_ids).logits, expected)
    assert model.summarizer.shared.weight is model.reconstructor.shared.weight
    assert model.config.max_summary_tokens == 7 and model.config.summarizer.countdown_size == 25
    assert model(ids, mask).loss.isfinite()


def test_the_reconstructor_has_no_countdown_and_no_selector():
    summarizer = {**SIZES, "copy_head": True, "countdown_size": 8, "selection_weight": 1.0, "selection_ratio": 2.0}
    config = Seq2Seq2SeqConfig(summarizer=summarizer)
    assert config.reconstructor.copy_head and config.reconstructor.d_model == SIZES["d_model"]
    for field in ("countdown_size", "selection_weight", "selection_ratio"):
        assert getattr(config.reconstructor, field) == 0 < getattr(config.summarizer, field)
        refused = rf"reconstructor: expected 0 for .* got {field} 3"
        with pytest.raises((StrictDataclassError, ValueError), match=refused):
            Seq2Seq2SeqConfig(summarizer=summarizer, reconstructor={**SIZES, field: 3})


def test_embeddings_are_shared_or_not():
    shared, own = tiny(), tiny(share_embeddings=False)
    assert shared.summarizer.lm_head.weight is shared.reconstructor.shared.weight
    assert own.summarizer.shared.weight is not own.reconstructor.shared.weight
    count = lambda model: sum(p.numel() for p in model.parameters())  # noqa: E731
    assert count(own) - count(shared) == VOCAB * SIZES["d_model"]


@pytest.mark.parametrize("kind", ["none", "critic", "language_model"])
@pytest.mark.parametrize("share", [True, False])
def test_resized_vocabulary(kind, share):
    model = tiny(kind, share_embeddings=share)
    model.resize_token_embeddings(VOCAB + 3)
    ids, mask = texts(vocab_size=VOCAB + 3)
    ids[0, 0] = VOCAB + 2
    output = model(ids, mask, target_ids=ids)
    assert output.reconstruction_logits.shape[-1] == VOCAB + 3 and output.loss.isfinite()
    assert model.generate(ids, attention_mask=mask, num_words=2).shape[0] == 4
    model.config.validate()


# ---- what is refused


def test_wrong_configurations():
    with pytest.raises((StrictDataclassError, ValueError), match="vocab_size"):
        Seq2Seq2SeqConfig(summarizer={"vocab_size": 10}, reconstructor={"vocab_size": 11})
    with pytest.raises((StrictDataclassError, ValueError), match="share_embeddings"):
        Seq2Seq2SeqConfig(summarizer={"d_model": 16}, reconstructor={"d_model": 8})
    with pytest.raises(TypeError, match="copy_head"):
        Seq2Seq2SeqConfig(summarizer={"copy_heads": True})
    with pytest.raises(StrictDataclassError, match="gumbel_temperature"):
        Seq2Seq2SeqConfig(gumbel_temperature=0)
    with pytest.raises(StrictDataclassError, match="kind"):
        Seq2Seq2SeqConfig(discriminator={"kind": "gan"})


def test_wrong_inputs():
    model = tiny("critic").train()
    ids, mask = texts()
    for wrong in (0, torch.tensor([2, 2]), 1.5):
        with pytest.raises(ValueError, match="num_words"):
            model.generate(ids, attention_mask=mask, num_words=wrong)
    with pytest.raises(ValueError, match="as many target_ids"):
        model(ids, mask, target_ids=ids[:2])
    with pytest.raises(ValueError, match="input_ids"):
        model()
    with pytest.raises(ValueError, match="language model"):
        model(target_ids=ids)
    encoded = BaseModelOutput(last_hidden_state=torch.zeros(4, 9, SIZES["d_model"]))
    with pytest.raises(ValueError, match="decoder_source_ids"):
        model.summarizer(encoder_outputs=encoded, decoder_input_ids=ids[:, :2])


class Words:
    """As much of a tokenizer as `set_word_starts` asks for."""

    def __init__(self, tokens):
        self.tokens = tokens

    def __len__(self):
        return len(self.tokens)

    def convert_ids_to_tokens(self, ids):
        return [self.tokens[i] for i in ids]


def test_word_starts_come_from_the_tokenizer():
    model = tiny()
    tokens = ["<pad>", "</s>", "<unk>", "\u2581the", "s", *["\u2581w"] * (VOCAB - 5)]
    model.set_word_starts(Words(tokens))
    assert model.summarizer.count_words(torch.tensor([[3, 4, 7, 1, 0], [3, 3, 3, 3, -100]])).tolist() == [2, 4]
    with pytest.raises(ValueError, match=f"{VOCAB + 1} tokens, the model {VOCAB}"):
        model.set_word_starts(Words([*tokens, "x"]))
    with pytest.raises(ValueError, match="words cannot be counted"):
        model.set_word_starts(Words(["a"] * VOCAB))
