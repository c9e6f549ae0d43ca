"What a Trainer needs and a learner need not read."
