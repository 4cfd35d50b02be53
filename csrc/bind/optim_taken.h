// What a plan takes straight from Python's lists, where thousands of arguments of an op would cost more than the step.
#pragma once

struct _object;

namespace fastnorm {

// Python's take_grads(plan, grads): True if the plan has taken all of this list of gradients, and the next step finds
// them there. False, with nothing lost: they have to be given to the op.
_object* take_grads(_object*, _object* args);

// Python's take_hyper(plan, groups, keys, words): the same for the numbers under these keys of every group (a dict); a
// tuple is all of its members, a word the number that `words` has for it.
_object* take_hyper(_object*, _object* args);

// Python's optim_steps(plan): a capsule of the plan as OptimSteps (op/optim_steps.h), which keeps it alive.
_object* optim_steps(_object*, _object* handle);

}  // namespace fastnorm
