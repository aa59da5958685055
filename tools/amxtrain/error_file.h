// What a command that fails leaves for its launcher: the reason, in a file that the launcher named.
#pragma once

#include <amxtrain.h>

#include <string>

namespace command {

// AMXTRAIN_ERROR_FILE: for `amxtrain launch`, the status and the line. TORCHELASTIC_ERROR_FILE: for torchrun, the JSON object that its own
// workers leave, whole or not at all, as an agent ends with a file that it cannot read. torchrun takes the earliest of all ranks for the
// root cause: who only follows another rank's failure dates its own later.
void leave_reason(amxt_status status, const std::string& message);

}  // namespace command
