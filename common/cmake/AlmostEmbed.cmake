# almost_embed(sources symbol file): a source file that defines `extern const char symbol[]` in namespace almost with the
# file's text, and is appended to the list `sources`. A page is compiled in: it needs nothing but the binary that writes it.
function(almost_embed sources symbol file)
  file(READ ${file} ALMOST_EMBEDDED)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${file})
  set(ALMOST_EMBEDDED_SYMBOL ${symbol})
  set(source ${CMAKE_CURRENT_BINARY_DIR}/${symbol}.cc)
  file(CONFIGURE OUTPUT ${source} @ONLY CONTENT [=[
namespace almost {
extern const char @ALMOST_EMBEDDED_SYMBOL@[];
const char @ALMOST_EMBEDDED_SYMBOL@[] = R"EMBEDDED(@ALMOST_EMBEDDED@)EMBEDDED";
}  // namespace almost
]=])
  set(${sources} ${${sources}} ${source} PARENT_SCOPE)
endfunction()
