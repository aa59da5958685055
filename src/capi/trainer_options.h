// Options of a trainer as the host gives them, made into those of train/.
#pragma once

#include <amxtrain.h>

#include "base/result.h"
#include "train/options.h"

namespace amxt::capi {

// null: nothing was given. Errors name the field.
Result<amxt_trainer_options> read_trainer_options(const amxt_trainer_options* options);
Result<train::TrainOptions> train_options(const amxt_trainer_options& options);

}  // namespace amxt::capi
