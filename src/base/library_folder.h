// Where this library lies: what is opened at run time lies beside it.
#pragma once

#include <string>

namespace amxt {

// The folder of libamxtrain, or of the program that holds it; absolute where the system tells.
std::string library_folder();

}  // namespace amxt
