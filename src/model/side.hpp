// One side of a microbatch (encoder or decoder) as the layers need it.
#pragma once

#include <cstdint>
#include <vector>

#include "data/batch.hpp"
#include "kernels/attention.hpp"
#include "kernels/transfer.hpp"
#include "moe/layer_context.hpp"
#include "moe/router.hpp"

namespace flanmoe {

/// Memory of the device for what kernels read of a side; none where they read the host's lists.
struct SideRoom {
  Tensor ids_T, place_T;
  void lay(Arena& arena, const TransferKernels& transfer, std::int64_t tokens);
};

struct Side {
  std::int64_t tokens = 0;
  Tensor ids_T;                   // i32: the batch's token ids; with segment_place_T valid after place()
  Tensor segment_place_T;         // i32: position of each token in its segment
  AttentionSegments self, cross;  // cross: decoder only
  RoutingGroups groups;
  std::vector<std::int64_t> row_T;       // global row of each token
  std::vector<std::int32_t> position_T;  // position of each token in its row
  std::vector<std::int32_t> shared_T;    // zeros: the position of masks that are shared over the length of a row
  std::vector<std::int32_t> place_T;     // what segment_place_T views
  std::vector<std::int32_t> key_begin_S, key_count_S;  // cross: encoder segment of every decoder segment
  /// Boundaries of the leaves among tokens and among segments of self attention; see BatchLimits::leaves.
  std::vector<std::int64_t> leaf_token, leaf_segment;

  /// Takes memory for at most so many tokens, rows and leaves.
  void reserve(std::int64_t most_tokens, std::int64_t rows, std::int64_t leaves);
  /// Reads one side of a batch; vectors keep their memory from call to call. `group_rows` rows form a routing group;
  /// `step_rows`, `step_tokens` are the sizes of the whole step. Rows are cut into `leaves` equal parts. The batch must
  /// outlive this.
  void bind(const RaggedSide& batch, std::int64_t first_row, std::int64_t group_rows, std::int64_t step_rows,
            std::int64_t step_tokens, std::int64_t leaves = 1);
  /// Brings ids and positions, which were bound, to where kernels read them.
  void place(KernelContext& context, const TransferKernels& transfer, const SideRoom& room, const RaggedSide& batch);
  /// Self attention sees the first prefix_S[s] tokens of segment s in both directions (empty: none; must outlive this).
  void bind_prefix(const std::vector<std::int32_t>& prefix_S) { self.prefix = prefix_S; }
  /// Cross attention from `decoder` to `encoder` segments; `encoder_of_S` empty: the same index.
  void bind_cross(const RaggedSide& decoder, const RaggedSide& encoder, const std::vector<std::int32_t>& encoder_of_S);
};

/// Boundaries of `leaves` equal parts of the rows, among the tokens.
void bind_leaves(std::vector<std::int64_t>& leaf_token, const std::vector<std::int64_t>& row_first,
                 std::int64_t leaves);

/// The mask of dropout site `site` over features of this side's tokens. `shared`: one mask for all positions of a row.
DropoutMask feature_mask(const LayerContext& c, const Side& side, std::uint32_t site, bool shared);
/// As the deck says: shared over the length of a row or not.
DropoutMask feature_mask(const LayerContext& c, const Side& side, std::uint32_t site);

}  // namespace flanmoe
