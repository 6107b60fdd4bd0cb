"""The knobs: each experiment changes one thing about the base setting on the byte-level GPT, over the same seeds."""

from benchmarks.study_settings import BASE, HALF_OCTAVES, SHORT, Experiment, Variant, rates, setting


def knob(question: str, *variants: Variant, steps: int | None = SHORT) -> Experiment:
    return Experiment(question, "gpt", variants, steps=steps, knob=True)


KNOBS: dict[str, Experiment] = {
    "lr": knob("Shampoo's learning rate, 300 steps.", *rates(BASE, -3, -1, 0, 1, 2), steps=None),
    "grafting": knob(
        "Whose step length a block takes.",
        setting("Adam(.95)"),
        setting("Adam(.999)", graft_beta2=0.999, elementwise_beta2=0.95),
        setting("RMS 0.2", graft="rms", elementwise_beta2=0.95),
    ),
    "grafting-without-adam": Experiment(
        "Step lengths that need a learning rate of their own: from SGD (everything preconditioned), and none (exponent 1/4).",
        "gpt",
        [
            *(setting(f"SGD, lr {lr}", graft="sgd", diagonal=[], vectors="full", lr=lr) for lr in (0.05, 0.2, 0.8, 3.2)),
            *(setting(f"none, lr {lr}", graft="none", exponent=0.25, lr=lr) for lr in (0.01, 0.02, 0.04, 0.08, 0.16)),
        ],
        steps=SHORT,
    ),
    "filter": knob(
        "Decay of the gradient filter, and look-ahead.",
        *(setting(f"beta1 {beta1}", beta1=beta1) for beta1 in (0.9, 0.8, 0.7, 0.0, 0.95)),
        *(setting(f"beta1 .9, beta3 {beta3}", beta3=beta3) for beta3 in (0.6, 0.8)),
    ),
    "exponent": knob(
        "The exponent of both inverse roots, 300 steps; 1/4 is the first paper's.",
        *(setting(f"1/{p}", exponent=1 / p) for p in (4, 3)),
        setting("1/2"),
        setting("1/2, smaller side only", small_side=True),
        steps=None,
    ),
    "sides": Experiment(
        "One factor instead of two, or the sum of what each does alone, at the strength of 1/2 on both sides: exponent 1.",
        "gpt",
        [
            setting("1/2 on both sides"),
            setting("1 on the smaller side", small_side=True, exponent=1.0),
            setting("1 on the smaller side, roots every step", small_side=True, exponent=1.0, precondition_frequency=1),
            setting("the sum of 1 on either, roots every step", sum_of_sides=True, exponent=1.0, precondition_frequency=1),
            setting("1/2 on both sides, roots every step", precondition_frequency=1),
        ],
    ),
    "candidates": knob(
        "What the best learning rate and more accurate preconditioning give, 300 steps.",
        setting("lr 0.0141", lr=HALF_OCTAVES[1]),
        setting("beta1 .8", lr=HALF_OCTAVES[1], beta1=0.8),
        setting("blocks of 1024, roots every 5", lr=HALF_OCTAVES[1], max_preconditioner_dim=1024, precondition_frequency=5),
        setting("blocks of 128", lr=HALF_OCTAVES[1], max_preconditioner_dim=128),
        steps=None,
    ),
    "block": knob("The largest block.", *(setting(str(size), max_preconditioner_dim=size) for size in (64, 128, 256, 1024))),
    "cadence": knob(
        "Steps between roots.",
        setting("every 10, dense until 20, then ever less often"),
        setting("every 10, dense until 10, then ever less often", dense_until=10),
        setting("every 10, dense until 20, then at once", dense_until=0, dense_then_sparse=20),
        setting("every 10", dense_until=0),
        setting("every 10, dense until 7, then ever less often", dense_until=7),
        setting("every 10, staggered, dense until 20", staggered=True),
        setting("every 50, dense until 20", precondition_frequency=50),
        setting("every 5, dense until 20", precondition_frequency=5),
        setting("every step", dense_until=0, precondition_frequency=1),
    ),
    "beta2": knob("Decay of the Kronecker factors.", *(setting(str(beta2), beta2=beta2) for beta2 in (0.9, 0.95, 0.98, 0.99))),
    "ridge": knob(
        "The ridge, relative to a factor's norm.", *(setting(f"{ridge:g}", ridge=ridge) for ridge in (1e-8, 1e-6, 1e-4, 1e-3))
    ),
    "treatment": knob(
        "Which parameters are left to Adam, and Adam's beta2.",
        setting("embeddings, head, vectors: Adam(.95)"),
        setting("the same, Adam(.999)", elementwise_beta2=0.999),
        setting("head preconditioned", diagonal=["token.*", "position.*"]),
        setting("embeddings preconditioned", diagonal=["head.*"]),
        setting("all preconditioned, vectors too", diagonal=[], vectors="full"),
    ),
    "accuracy": knob(
        "How accurate roots must be.",
        setting("eigh in float64"),
        setting("eigh in float32", roots="float32"),
        setting("Minimax in float32", roots="minimax"),
        *(setting(f"float64 with {level:.0%} noise", root_noise=level) for level in (0.01, 0.1)),
    ),
    "warmup": knob("Steps of linear warm-up.", *(setting(str(steps), warmup=steps) for steps in (1, 10, 30))),
    "statistics": knob(
        "Every how many steps a gradient enters the factors.",
        *(setting(f"{k}", statistics_every=k) for k in (1, 2, 5)),
    ),
    "decay": knob("Decoupled weight decay.", *(setting(f"{decay:g}", weight_decay=decay) for decay in (0.0, 0.1, 1.0))),
    "shape": knob(
        "The step length by shape, blocks of 1024.",
        *(
            setting(
                f"{shape or 'RMS'} {rms}",
                graft="rms",
                elementwise_beta2=0.95,
                max_preconditioner_dim=1024,
                rms_shape=shape,
                rms=rms,
            )
            for shape, rms in ((None, 0.2), ("tall", 0.2), ("muon", 0.3))
        ),
    ),
}
