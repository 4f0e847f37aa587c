# Reads deploy/versions.env into variables of the same names, prefixed ALMOST_,
# and finds the folder into which deploy/setup puts what Debian does not package.
file(STRINGS ${CMAKE_SOURCE_DIR}/deploy/versions.env _lines REGEX "^[A-Z_]+=")
foreach(_line IN LISTS _lines)
  string(REGEX MATCH "^([A-Z_]+)=(.*)$" _ "${_line}")
  set(ALMOST_${CMAKE_MATCH_1} "${CMAKE_MATCH_2}")
endforeach()
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/deploy/versions.env)

if(DEFINED ENV{ALMOST_DEPS})
  set(_default_deps $ENV{ALMOST_DEPS})
else()
  set(_default_deps $ENV{HOME}/.cache/almost)
endif()
set(ALMOST_DEPS ${_default_deps} CACHE PATH "Where deploy/setup keeps LibTorch, google/rpc protos and the tokenizer library")
