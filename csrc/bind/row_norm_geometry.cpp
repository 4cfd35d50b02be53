#include "bind/row_norm.h"

#include <algorithm>

#include "op/cpu_kernels.h"

namespace fastnorm {
namespace {

constexpr int64_t kShortPlane = 16;  // elements: shorter planes are no planes but elements with weights of their own

int64_t product(const Tensor& x, int64_t begin, int64_t end) {
  int64_t p = 1;
  for (int64_t d = begin; d < end; ++d) p *= x.size(d);
  return p;
}

// One number per element of a set: the trailing dims of x, whose first is cut off where rows are long enough.
Parameter element_parameter(const Tensor& x, int64_t dims, bool channels_last) {
  Parameter p;
  const int64_t rank = x.dim();
  if (channels_last) {  // [outer, C, S] walked as [outer, S, C]
    const int64_t C = x.size(1), S = product(x, 2, rank);
    p.outer = dims == rank ? x.size(0) : 1, p.rows = S, p.columns = C;
    p.outer_stride = C * S, p.row_stride = 1, p.column_stride = S;
    return p;
  }
  constexpr int64_t kLongRow = 256;
  const int64_t rest = product(x, rank - dims + 1, rank);
  p.rows = rest >= kLongRow ? x.size(rank - dims) : 1;
  p.columns = rest >= kLongRow ? rest : rest * x.size(rank - dims);
  p.row_stride = p.columns;
  return p;
}

// One number per channel, shared by `repeat` neighbouring elements.
Parameter channel_parameter(int64_t C, int64_t repeat) {
  Parameter p;
  if (repeat == 1) {
    p.columns = C;
  } else {
    p.rows = C, p.columns = repeat, p.row_stride = 1, p.column_stride = 0;
  }
  return p;
}

void layer_geometry(const Tensor& x, int64_t dims, RowNormGeometry& g) {
  const int64_t rank = x.dim();
  const bool channels_last = g.format != MemoryFormat::Contiguous && dims >= rank - 1;
  g.order = channels_last ? g.format : MemoryFormat::Contiguous;
  g.sets = product(x, 0, rank - dims);
  g.shape = {RowOrder::runs, g.sets, 1, product(x, rank - dims, rank), 1};
  for (int64_t d = rank - dims; d < rank; ++d) g.weights.push_back(x.size(d));
  g.parameter = element_parameter(x, dims, channels_last);
}

void group_geometry(const Tensor& x, int64_t groups, RowNormGeometry& g) {
  const int64_t N = x.size(0), C = x.size(1), S = product(x, 2, x.dim()), K = C / groups;
  g.sets = N * groups;
  int64_t repeat = 1;
  if (g.format != MemoryFormat::Contiguous && C > 1 && S > 1) {
    g.shape = {RowOrder::columns, N, groups, K, S};
  } else if (S < kShortPlane) {
    g.shape = {RowOrder::runs, N, groups, K * S, 1};
    repeat = S;
  } else {
    g.shape = {RowOrder::planes, N, groups, K, S};
  }
  g.parameter = channel_parameter(C, repeat);
}

void position_geometry(const Tensor& x, RowNormGeometry& g) {
  const int64_t N = x.size(0), C = x.size(1), S = product(x, 2, x.dim());
  g.sets = N * S;
  if ((g.format != MemoryFormat::Contiguous && C > 1) || S == 1) g.shape = {RowOrder::runs, N * S, 1, C, 1};
  else g.shape = {RowOrder::positions, N, 1, C, S};
  g.parameter = channel_parameter(C, 1);
}

}  // namespace

RowNormGeometry row_norm_geometry(const Tensor& x, int64_t dims, int64_t groups) {
  const int64_t rank = x.dim();
  STD_TORCH_CHECK(dims >= 0 && groups >= 0 && (dims == 0 || groups == 0), "dims (", dims, ") and groups (", groups,
                  ") must not be negative, and one of them must be 0");
  STD_TORCH_CHECK(dims <= rank, "x has ", rank, " dims, fewer than the ", dims, " to normalize over");
  STD_TORCH_CHECK(dims > 0 || rank >= 2, "x must be [N, C, *], it has ", rank, " dims");
  STD_TORCH_CHECK(groups == 0 || x.size(1) % groups == 0, "x has ", x.size(1), " channels, not divisible into ",
                  groups, " groups");
  RowNormGeometry g;
  g.format = g.order = memory_format_of(x);
  if (dims > 0) {
    layer_geometry(x, dims, g);
    return g;
  }
  g.weights = {x.size(1)};
  if (groups > 0) group_geometry(x, groups, g);
  else position_geometry(x, g);
  return g;
}

ParameterNumbers::ParameterNumbers(const OptionalTensor& v, const char* name, const RowNormGeometry& g, Dtype dtype,
                                   OptionalNumber filled) {
  const Dtype arithmetic = dtype == Dtype::f64 ? Dtype::f64 : Dtype::f32;
  const int64_t count = g.parameter.numbers();
  if (!v.has_value()) {
    if (!filled.has_value()) return;
    own_ = scratch<double>(count);
    data_ = own_.get();
    if (arithmetic == Dtype::f64) std::fill_n(own_.get(), count, *filled);
    else std::fill_n(reinterpret_cast<float*>(own_.get()), count, static_cast<float>(*filled));
    return;
  }
  STD_TORCH_CHECK(v->is_cpu(), name, " must be a CPU tensor");
  bool same = v->dim() == static_cast<int64_t>(g.weights.size());
  for (size_t d = 0; same && d < g.weights.size(); ++d) same = v->size(static_cast<int64_t>(d)) == g.weights[d];
  STD_TORCH_CHECK(same, name, " must have one number for each that shares a statistic: its shape is wrong");
  const Tensor dense = v->is_contiguous() ? *v : torch::stable::contiguous(*v);
  Parameter p = g.parameter;
  p.data = dense.data_ptr(), p.dtype = dtype_of(*v, name);
  if (p.dtype == arithmetic && p.column_stride == 1 && (p.rows == 1 || p.row_stride == p.columns)) {
    data_ = p.data;
    if (v->is_contiguous()) return;
  }
  own_ = scratch<double>(count);
  data_ = own_.get();
  cpu_kernels().row_norm.load_parameter(p, arithmetic, own_.get());
}

Parameter gradient_of(const Tensor& grad, const RowNormGeometry& g) {
  Parameter p = g.parameter;
  p.data = grad.data_ptr(), p.dtype = dtype_of(grad, "gradient");
  return p;
}

}  // namespace fastnorm
