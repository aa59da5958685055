#include "kernels/gemm_onednn.h"

#include <fmt/format.h>

#include "kernels/onednn.h"

namespace amxt::kernels {

const char* onednn_gemm_name(Isa isa) {
  return isa == Isa::kAmx ? "onednn-amx" : "onednn-avx512_bf16";
}

}  // namespace amxt::kernels

#if AMXT_HAVE_DNNL

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <map>
#include <utility>

#include "base/buffer.h"
#include "base/carver.h"
#include "kernels/gemm_transpose.h"

namespace amxt::kernels {
namespace {

enum class Product : int64_t { kForward, kGradInput, kGradWeight };
constexpr const char* kProductNames[] = {"forward", "grad_input", "grad_weight"};

// C[M,N] (+)= A[M,P] B[P,N]; A runs along p, B is [P,N], or [N,P] for the forward product. dW's A
// is dY in memory, [P,M].
struct Problem {
  Product product;
  int64_t M, N, P, lda, ldb, ldc;
  bool to_float, accumulate;

  auto key() const {
    return std::array<int64_t, 9>{
        static_cast<int64_t>(product), M, N, P, lda, ldb, ldc, to_float, accumulate};
  }
  std::string text() const {
    return fmt::format("{}: M x N x P {} x {} x {}, row strides {}, {}, {}, bf16 x bf16 -> {}{}",
                       kProductNames[static_cast<int64_t>(product)], M, N, P, lda, ldb, ldc,
                       to_float ? "f32" : "bf16", accumulate ? " added" : "");
  }
};

constexpr int64_t kTileDepth = 32;  // of P, in one tile

// A is brought into scratch first: dY for dW is transposed there; and where tiles reach beyond P,
// zeros stand behind the rows. oneDNN reads there what lies behind a row (up to 30 elements, if the
// row distance allows) and multiplies it by zero: NaN and infinities of others would get into the
// result.
bool prepares_a(const Problem& problem) {
  return problem.product == Product::kGradWeight || problem.P % kTileDepth != 0;
}

// Distance between prepared rows: whole tiles, and an odd number of cache lines, so that 16 rows
// fall into 16 sets.
int64_t prepared_ld(int64_t depth) {
  return (depth + kTileDepth - 1) / kTileDepth * kTileDepth | kTileDepth;
}

// Block of C of one task: fixed by the problem, never by the number of threads.
struct Blocks {
  int64_t rows, columns;
};

int64_t half(int64_t side) { return (side / 2 + 63) / 64 * 64; }
int64_t blocks_in(int64_t whole, int64_t block) { return (whole + block - 1) / block; }

// About `block` long, but no short one at the end: oneDNN adds in another order in blocks of one
// row or column.
int64_t even(int64_t whole, int64_t block) {
  const int64_t share = blocks_in(whole, blocks_in(whole, block));
  return std::min(block, (share + 15) / 16 * 16);
}

// All rows, so that no two blocks convert the same part of B to the tiles' layout; as few columns
// as cost little (one thread, T = 512: 1024 columns instead give -5 to +5%, fewer rows -15 to
// -25%). Small problems are cut on for some threads to share.
Blocks blocks_of(const Problem& problem) {
  constexpr int64_t kLeastBlocks = 4, kLeastSide = 256;
  const int64_t columns = problem.product == Product::kForward ? 256 : 512;
  Blocks blocks{problem.M, std::min(problem.N, columns)};
  while (blocks_in(problem.M, blocks.rows) * blocks_in(problem.N, blocks.columns) < kLeastBlocks) {
    if (blocks.columns > kLeastSide) {
      blocks.columns = half(blocks.columns);
    } else if (blocks.rows > kLeastSide) {
      blocks.rows = half(blocks.rows);
    } else {
      break;
    }
  }
  blocks.rows = even(problem.M, blocks.rows);
  blocks.columns = even(problem.N, blocks.columns);
  return blocks;
}

// Rows of A that are prepared together: what 16 MiB hold, shared out evenly.
int64_t panel_rows(const Problem& problem) {
  constexpr int64_t kPanelBytes = int64_t{16} << 20;
  const int64_t row_bytes = prepared_ld(problem.P) * int64_t{sizeof(bf16)};
  const int64_t most = std::max<int64_t>(kPanelBytes / row_bytes, 256);
  const int64_t panels = blocks_in(problem.M, most);
  return std::min(problem.M, (blocks_in(problem.M, panels) + 63) / 64 * 64);
}

struct Handles {
  dnnl_memory_t a = nullptr, b = nullptr, c = nullptr, scratch = nullptr;
};

// One shape of block: its primitive, and for each thread the memory objects that carry the pointers
// of a call.
struct Piece {
  dnnl_primitive_t primitive = nullptr;
  int64_t scratch_bytes = 0;
  std::vector<Handles> threads;
};

// All blocks of a problem: whole ones, and the last of each row and column.
struct Plan {
  Blocks blocks;
  Piece pieces[2][2];
};

class OnednnGemm final : public Gemm<bf16> {
 public:
  OnednnGemm(ThreadPool* pool, Isa isa, const Onednn* api) : pool_(pool), isa_(isa), api_(*api) {
    name_ = onednn_gemm_name(isa);
    candidates_.push_back({name_, ""});
  }

  ~OnednnGemm() override {
    drop_plans();
    for (dnnl_stream_t stream : streams_) api_.stream_destroy(stream);
  }

  Status prepare_threads() {
    streams_.reserve(static_cast<size_t>(pool_->threads()));
    for (int i = 0; i < pool_->threads(); ++i) {
      dnnl_stream_t stream = nullptr;
      const dnnl_status_t status =
          api_.stream_create(&stream, api_.engine, dnnl_stream_default_flags);
      if (status != dnnl_success) {
        return Error(Code::kUnsupported,
                     fmt::format("oneDNN: no stream: {}", onednn_status_name(status)));
      }
      streams_.push_back(stream);
    }
    return {};
  }

  Status forward(int64_t T, int64_t N, int64_t K, const bf16* x, int64_t ldx, const bf16* w,
                 int64_t ldw, bf16* y, int64_t ldy) override {
    return multiply({Product::kForward, T, N, K, ldx, ldw, ldy, false, false}, x, w, y);
  }
  Status forward_float(int64_t T, int64_t N, int64_t K, const bf16* x, int64_t ldx, const bf16* w,
                       int64_t ldw, float* y, int64_t ldy) override {
    return multiply({Product::kForward, T, N, K, ldx, ldw, ldy, true, false}, x, w, y);
  }
  Status grad_input(int64_t T, int64_t N, int64_t K, const bf16* dy, int64_t lddy, const bf16* w,
                    int64_t ldw, bf16* dx, int64_t lddx) override {
    return multiply({Product::kGradInput, T, K, N, lddy, ldw, lddx, false, false}, dy, w, dx);
  }
  Status grad_input_float(int64_t T, int64_t N, int64_t K, const bf16* dy, int64_t lddy,
                          const bf16* w, int64_t ldw, float* dx, int64_t lddx,
                          bool accumulate) override {
    return multiply({Product::kGradInput, T, K, N, lddy, ldw, lddx, true, accumulate}, dy, w, dx);
  }
  Status grad_weight(int64_t T, int64_t N, int64_t K, const bf16* dy, int64_t lddy, const bf16* x,
                     int64_t ldx, float* dw, int64_t lddw, bool accumulate) override {
    return multiply({Product::kGradWeight, N, K, T, lddy, ldx, lddw, true, accumulate}, dy, x, dw);
  }
  Status grad_weight_rounded(int64_t T, int64_t N, int64_t K, const bf16* dy, int64_t lddy,
                             const bf16* x, int64_t ldx, bf16* dw, int64_t lddw) override {
    return multiply({Product::kGradWeight, N, K, T, lddy, ldx, lddw, false, false}, dy, x, dw);
  }
  bool one_order() const override { return false; }

 private:
  Error failed(const Problem& problem, const char* what, dnnl_status_t status) const {
    const Code code = status == dnnl_out_of_memory ? Code::kOutOfMemory : Code::kInternal;
    return Error(code, fmt::format("oneDNN ({}): {}: {}: {}", isa_name(isa_), problem.text(), what,
                                   onednn_status_name(status)));
  }

  void drop(Piece* piece) const {
    for (const Handles& handles : piece->threads) {
      for (dnnl_memory_t memory : {handles.a, handles.b, handles.c, handles.scratch}) {
        if (memory != nullptr) api_.memory_destroy(memory);
      }
    }
    if (piece->primitive != nullptr) api_.primitive_destroy(piece->primitive);
    *piece = Piece();
  }
  void drop(Plan* plan) const {
    for (auto& row : plan->pieces) {
      for (Piece& piece : row) drop(&piece);
    }
  }
  void drop_plans() {
    for (auto& [key, plan] : plans_) drop(&plan);
    plans_.clear();
  }

  // A block of rows x columns of the problem as oneDNN's primitive.
  dnnl_status_t prepare_piece(const Problem& problem, int64_t rows, int64_t columns, Piece* piece) {
    const int64_t lda = prepares_a(problem) ? prepared_ld(problem.P) : problem.lda;
    const dnnl_dims_t a_dims = {rows, problem.P}, a_strides = {lda, 1};
    const dnnl_dims_t b_dims = {problem.P, columns};
    const dnnl_dims_t b_along = {1, problem.ldb}, b_across = {problem.ldb, 1};
    const dnnl_dims_t c_dims = {rows, columns}, c_strides = {problem.ldc, 1};
    dnnl_memory_desc_t a = nullptr, b = nullptr, c = nullptr;
    dnnl_post_ops_t post_ops = nullptr;
    dnnl_primitive_attr_t attributes = nullptr;
    dnnl_primitive_desc_t description = nullptr;
    const auto prepare = [&]() -> dnnl_status_t {
#define AMXT_DNNL_TRY(call) \
  if (const dnnl_status_t s = api_.call; s != dnnl_success) return s
      AMXT_DNNL_TRY(memory_desc_create_with_strides(&a, 2, a_dims, dnnl_bf16, a_strides));
      AMXT_DNNL_TRY(memory_desc_create_with_strides(
          &b, 2, b_dims, dnnl_bf16, problem.product == Product::kForward ? b_along : b_across));
      AMXT_DNNL_TRY(memory_desc_create_with_strides(
          &c, 2, c_dims, problem.to_float ? dnnl_f32 : dnnl_bf16, c_strides));
      AMXT_DNNL_TRY(primitive_attr_create(&attributes));
      AMXT_DNNL_TRY(primitive_attr_set_scratchpad_mode(attributes, dnnl_scratchpad_mode_user));
      if (problem.accumulate) {
        AMXT_DNNL_TRY(post_ops_create(&post_ops));
        AMXT_DNNL_TRY(post_ops_append_sum(post_ops, 1.0f, 0, dnnl_data_type_undef));
        AMXT_DNNL_TRY(primitive_attr_set_post_ops(attributes, post_ops));
      }
      AMXT_DNNL_TRY(
          matmul_primitive_desc_create(&description, api_.engine, a, b, nullptr, c, attributes));
      AMXT_DNNL_TRY(primitive_create(&piece->primitive, description));
      const const_dnnl_memory_desc_t scratch =
          api_.primitive_desc_query_md(description, dnnl_query_scratchpad_md, 0);
      piece->scratch_bytes = static_cast<int64_t>(api_.memory_desc_get_size(scratch));
      piece->threads.resize(static_cast<size_t>(pool_->threads()));
      for (Handles& handles : piece->threads) {
        AMXT_DNNL_TRY(memory_create(&handles.a, a, api_.engine, nullptr));
        AMXT_DNNL_TRY(memory_create(&handles.b, b, api_.engine, nullptr));
        AMXT_DNNL_TRY(memory_create(&handles.c, c, api_.engine, nullptr));
        AMXT_DNNL_TRY(memory_create(&handles.scratch, scratch, api_.engine, nullptr));
      }
#undef AMXT_DNNL_TRY
      return dnnl_success;
    };
    const dnnl_status_t status = prepare();
    if (description != nullptr) api_.primitive_desc_destroy(description);
    if (attributes != nullptr) api_.primitive_attr_destroy(attributes);
    if (post_ops != nullptr) api_.post_ops_destroy(post_ops);
    for (dnnl_memory_desc_t desc : {a, b, c}) {
      if (desc != nullptr) api_.memory_desc_destroy(desc);
    }
    return status;
  }

  Status grow(Buffer* buffer, int64_t bytes, const char* what) const {
    if (bytes <= buffer->bytes()) return {};
    buffer->reset();
    AMXT_ASSIGN(*buffer, Buffer::allocate(bytes, what));
    return {};
  }

  Status grow_scratch(const Problem& problem, int64_t bytes) {
    if (bytes > scratch_bytes_) {
      AMXT_TRY(grow(&scratch_, bytes * pool_->threads(), "scratch of the matrix product"));
      scratch_bytes_ = bytes;
    }
    if (!prepares_a(problem)) return {};
    return grow(&prepared_, problem.M * prepared_ld(problem.P) * int64_t{sizeof(bf16)},
                "first operand of the matrix product");
  }

  Result<Plan*> plan_of(const Problem& problem) {
    if (const auto found = plans_.find(problem.key()); found != plans_.end()) return &found->second;
    // A model has some tens of shapes; a bound in case that a host feeds ever new ones.
    constexpr size_t kMostPlans = 512;
    if (plans_.size() >= kMostPlans) drop_plans();
    const SingleThreaded alone(api_);
    Plan plan;
    plan.blocks = blocks_of(problem);
    int64_t scratch = 0;
    for (const int last_row : {0, 1}) {
      const int64_t rows = last_row ? problem.M % plan.blocks.rows : plan.blocks.rows;
      for (const int last_column : {0, 1}) {
        const int64_t columns = last_column ? problem.N % plan.blocks.columns : plan.blocks.columns;
        if (rows == 0 || columns == 0) continue;
        Piece& piece = plan.pieces[last_row][last_column];
        const dnnl_status_t status = prepare_piece(problem, rows, columns, &piece);
        if (status != dnnl_success) {
          drop(&plan);
          return failed(problem, fmt::format("preparing {} x {}", rows, columns).c_str(), status);
        }
        scratch = std::max(scratch, piece.scratch_bytes);
      }
    }
    if (Status grown = grow_scratch(problem, whole_lines(scratch)); !grown) {
      drop(&plan);
      return std::move(grown).error();
    }
    return &plans_.emplace(problem.key(), std::move(plan)).first->second;
  }

  void prepare_a(const Problem& problem, const bf16* a) {
    const int64_t ld = prepared_ld(problem.P);
    pool_->run_blocks(problem.M, 256, [&](int64_t begin, int64_t end) {
      bf16* const to = prepared_.as<bf16>() + begin * ld;
      if (problem.product == Product::kGradWeight) {
        transpose_avx512(problem.P, end - begin, a + begin, problem.lda, to, ld);
      }
      for (int64_t i = 0; i < end - begin; ++i) {
        bf16* const row = to + i * ld;
        if (problem.product != Product::kGradWeight) {
          std::memcpy(row, a + (begin + i) * problem.lda,
                      static_cast<size_t>(problem.P) * sizeof(bf16));
        }
        for (int64_t p = problem.P; p % kTileDepth != 0; ++p) row[p] = bf16{0};
      }
    });
  }

  template <typename C>
  dnnl_status_t run_block(const Problem& problem, const Plan& plan, int64_t row, int64_t column,
                          int thread, const bf16* a, const bf16* b, C* c) const {
    const int64_t rows = std::min(plan.blocks.rows, problem.M - row);
    const int64_t columns = std::min(plan.blocks.columns, problem.N - column);
    const Piece& piece = plan.pieces[rows < plan.blocks.rows][columns < plan.blocks.columns];
    const Handles& handles = piece.threads[static_cast<size_t>(thread)];
    const bf16* const a_block = prepares_a(problem)
                                    ? prepared_.as<bf16>() + row * prepared_ld(problem.P)
                                    : a + row * problem.lda;
    const bf16* b_block =
        problem.product == Product::kForward ? b + column * problem.ldb : b + column;
    const std::pair<dnnl_memory_t, const void*> pointers[] = {
        {handles.a, a_block},
        {handles.b, b_block},
        {handles.c, c + row * problem.ldc + column},
        {handles.scratch, scratch_.data() + thread * scratch_bytes_}};
    for (const auto& [memory, pointer] : pointers) {
      const dnnl_status_t status = api_.memory_set_data_handle(memory, const_cast<void*>(pointer));
      if (status != dnnl_success) return status;
    }
    const dnnl_exec_arg_t arguments[] = {{DNNL_ARG_SRC, handles.a},
                                         {DNNL_ARG_WEIGHTS, handles.b},
                                         {DNNL_ARG_DST, handles.c},
                                         {DNNL_ARG_SCRATCHPAD, handles.scratch}};
    return api_.primitive_execute(piece.primitive, streams_[static_cast<size_t>(thread)],
                                  std::size(arguments), arguments);
  }

  template <typename C>
  Status multiply(const Problem& problem, const bf16* a, const bf16* b, C* c) {
    if (problem.M == 0 || problem.N == 0) return {};
    if (problem.P == 0) {
      if (problem.accumulate) return {};
      for (int64_t i = 0; i < problem.M; ++i) {
        std::memset(c + i * problem.ldc, 0, static_cast<size_t>(problem.N) * sizeof(C));
      }
      return {};
    }
    if (!prepares_a(problem)) return multiply_panel(problem, a, b, c);
    const int64_t most = panel_rows(problem);
    for (int64_t row = 0; row < problem.M; row += most) {
      Problem panel = problem;
      panel.M = std::min(most, problem.M - row);
      const bf16* const from =
          problem.product == Product::kGradWeight ? a + row : a + row * problem.lda;
      AMXT_TRY(multiply_panel(panel, from, b, c + row * problem.ldc));
    }
    return {};
  }

  template <typename C>
  Status multiply_panel(const Problem& problem, const bf16* a, const bf16* b, C* c) {
    AMXT_ASSIGN(const Plan* const plan, plan_of(problem));
    if (prepares_a(problem)) prepare_a(problem, a);
    const int64_t down = blocks_in(problem.M, plan->blocks.rows);
    const int64_t across = blocks_in(problem.N, plan->blocks.columns);
    std::atomic<int> worst{dnnl_success};
    pool_->run(down * across, [&](int64_t task, int thread) {
      const SingleThreaded alone(api_);
      const dnnl_status_t status = run_block(problem, *plan, task % down * plan->blocks.rows,
                                             task / down * plan->blocks.columns, thread, a, b, c);
      if (status != dnnl_success) worst.store(status, std::memory_order_relaxed);
    });
    const auto status = static_cast<dnnl_status_t>(worst.load(std::memory_order_relaxed));
    if (status != dnnl_success) return failed(problem, "running", status);
    return {};
  }

  ThreadPool* pool_;
  Isa isa_;
  const Onednn& api_;
  std::vector<dnnl_stream_t> streams_;
  std::map<std::array<int64_t, 9>, Plan> plans_;
  Buffer prepared_;            // A of one panel, [M, prepared_ld(P)]
  Buffer scratch_;             // oneDNN's, of all threads
  int64_t scratch_bytes_ = 0;  // of one thread
};

}  // namespace

Result<std::unique_ptr<Gemm<bf16>>> create_onednn_gemm(ThreadPool* pool, Isa isa) {
  AMXT_ASSIGN(const Onednn* api, onednn(isa));
  auto gemm = std::make_unique<OnednnGemm>(pool, isa, api);
  AMXT_TRY(gemm->prepare_threads());
  return std::unique_ptr<Gemm<bf16>>(std::move(gemm));
}

}  // namespace amxt::kernels

#else

namespace amxt::kernels {

Result<std::unique_ptr<Gemm<bf16>>> create_onednn_gemm(ThreadPool*, Isa) {
  return Error(Code::kUnsupported, onednn_info().reason);
}

}  // namespace amxt::kernels

#endif
