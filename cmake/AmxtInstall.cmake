# What `make install` lays down: library, header, command, pkg-config and CMake files.

if(AMXT_BUILD_FUZZERS)
  return()
endif()
include(CMakePackageConfigHelpers)

install(TARGETS amxtrain EXPORT amxtrainTargets
  LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}")
if(TARGET amxtrain_command)
  install(TARGETS amxtrain_command RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}")
endif()
if(AMXT_HAVE_DNNL)
  install(PROGRAMS "${AMXT_DNNL_LIBRARY}" DESTINATION "${CMAKE_INSTALL_LIBDIR}")
endif()
if(TARGET amxtrain_gloo)
  install(TARGETS amxtrain_gloo LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}")
endif()
if(EXISTS "${PROJECT_SOURCE_DIR}/include/amxtrain.h")
  install(FILES "${PROJECT_SOURCE_DIR}/include/amxtrain.h" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
endif()
install(FILES "${PROJECT_SOURCE_DIR}/LICENSE" "${PROJECT_SOURCE_DIR}/THIRD_PARTY_NOTICES.md"
  DESTINATION "${CMAKE_INSTALL_DATADIR}/doc/amxtrain")

configure_file("${PROJECT_SOURCE_DIR}/pkgconfig/amxtrain.pc.in" "${PROJECT_BINARY_DIR}/amxtrain.pc" @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/amxtrain.pc" DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig")

set(package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/amxtrain")
install(EXPORT amxtrainTargets NAMESPACE amxtrain:: DESTINATION "${package_dir}")
configure_package_config_file(
  "${PROJECT_SOURCE_DIR}/cmake/amxtrain-config.cmake.in" "${PROJECT_BINARY_DIR}/amxtrain-config.cmake"
  INSTALL_DESTINATION "${package_dir}" NO_SET_AND_CHECK_MACRO)
# Before 1.0 a minor version may change the ABI.
write_basic_package_version_file("${PROJECT_BINARY_DIR}/amxtrain-config-version.cmake"
  COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/amxtrain-config.cmake"
  "${PROJECT_BINARY_DIR}/amxtrain-config-version.cmake" DESTINATION "${package_dir}")
