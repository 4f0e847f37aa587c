# cmake -DSOURCE=… -DVERSION=… -DOUTPUT=… -P build_info.cmake: fills in build_info.cc.in.
execute_process(COMMAND git -C ${SOURCE} rev-parse HEAD
  OUTPUT_VARIABLE GIT_SHA OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
if(NOT GIT_SHA)
  set(GIT_SHA unknown)
endif()
configure_file(${CMAKE_CURRENT_LIST_DIR}/build_info.cc.in ${OUTPUT} @ONLY)
# Newer than the commit even when the text is as before, else it would be asked for at every build.
file(TOUCH ${OUTPUT})
