#include "bind/direct.h"

namespace fastnorm {

DirectOps& direct_ops() {
  static DirectOps ops;
  return ops;
}

}  // namespace fastnorm
