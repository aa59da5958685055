// Section 6 of the header: what ranks find on this machine.
#include "comm/topology.h"

#include "capi/guard.h"

using namespace amxt;
using namespace amxt::capi;

extern "C" {

amxt_status amxt_topology(char** json, amxt_error* err) {
  return guarded(err, [&]() -> Status {
    AMXT_TRY(require(json, "json"));
    const Json object = comm::topology(comm::process_environment());
    AMXT_ASSIGN(*json, copy_text(object.dump(-1, ' ', false, Json::error_handler_t::replace)));
    return {};
  });
}

}  // extern "C"
