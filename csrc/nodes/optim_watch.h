// An optimizer's plan under watch: what Python would have to ask at every step, asked in one call
// (fastnorm/ops/optim_watch.py).
#pragma once

struct _object;

namespace fastnorm {

// What has been found; as in fastnorm/ops/optim_watch.py.
enum OptimAnswer : long {
  kMoved,     // a tensor does not lie where it lay, or a parameter got or lost its gradient: the plan does not hold
  kOther,     // groups or states hold other objects: Python has to look whether the plan holds
  kLongWay,   // all as it was, but a gradient, or a mode that would see tensors, has to take the way through Python
  kReformed,  // taken, if the groups' new form still means the same
  kTaken,     // the next step needs a multiplier and a seed alone
};

// Python's watch_optim(steps, grad_type, params, rows, groups, all_states, states, hyper_keys, form_keys, words): a
// capsule, or None where the plan's tensors have moved already. steps: from fastnorm._C.optim_steps. params: of all
// groups. rows: of each parameter its tensors (that are written; the parameter first) and whether the last is the count
// of steps, or None without a gradient.
_object* watch_optim(_object*, _object* args);
// take_optim(watch, groups, states): an OptimAnswer.
_object* take_optim(_object*, _object* args);
// step_optim(watch, hyper, multiplier, seed): the step with what was taken; hyper is empty where the watch has read it.
_object* step_optim(_object*, _object* args);
// norm_optim(watch): the norm of all gradients that were taken.
_object* norm_optim(_object*, _object* watch);
// reads_optim(watch): whether the watch has read all hyper-parameters.
_object* reads_optim(_object*, _object* watch);
// profiled(): whether a profiler wants to see what is called.
_object* profiled(_object*, _object*);

}  // namespace fastnorm
