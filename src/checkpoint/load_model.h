// Loading a Hugging Face model: each rank reads the rows that it owns, each byte is read once over all ranks.
#pragma once

#include <atomic>

#include "base/deadline.h"
#include "base/result.h"
#include "checkpoint/progress.h"
#include "comm/group.h"
#include "model/directory.h"
#include "store/parameters.h"

namespace amxt::checkpoint {

// Collective. Fills the compute weights (and low bits, where there is an optimizer) of the rows owned here from BF16, F16 or F32; moments
// stay as they are, zero in new parameters. Extra memory: a block for each reader. Returns when all ranks have their rows, so that all
// rows may be read, or with the same error on all ("rank 1: ..."): parts may then have been written, and another load overwrites them.
template <typename E>
Status load_model(const model::ModelDirectory& model, store::Parameters<E>& parameters,
                  comm::Group& group, const Progress& progress, Deadline deadline,
                  const std::atomic<bool>* cancel);

}  // namespace amxt::checkpoint
