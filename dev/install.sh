#!/bin/sh
# `make install` and `make uninstall`: what goes where under DESTDIR and PREFIX stands once, in the function `files`.
#
#     PREFIX=/usr/local DESTDIR= LIBDIR=lib VERSION=1.0.0 GPU=... sh dev/install.sh install|uninstall
#
# GPU: not empty where the GPU program and its library are installed too. CUDA, STATIC_LIBS, GPU_STATIC_LIBS: what a program is linked
# with besides a static library. What is installed finds its parts from where it lies: the tree can be moved as a whole.
set -eu
cd "$(dirname "$0")/.."
major=${VERSION%%.*} root=$DESTDIR$PREFIX own=build/install
rm -rf $own && mkdir -p $own
climb() { echo "$1" | sed 's,[^/][^/]*,..,g'; }   # from folder $1 of PREFIX to PREFIX

# mode, from, to (in PREFIX); of a link: `link`, what it leads to, its name. uninstall removes what any install may have put there.
files() {
    library gpt2sp gpt2_sp
    echo "755 train_gpt2_sp bin/train_gpt2_sp"
    echo "644 $own/train_gpt2_sp.1 share/man/man1/train_gpt2_sp.1"
    echo "644 gpt2_sp.h include/gpt2_sp.h"
    for part in config config-version; do
        echo "644 $own/gpt2_sp-$part.cmake $LIBDIR/cmake/gpt2_sp/gpt2_sp-$part.cmake"
    done
    echo "644 dev/gpt2_sp.py share/gpt2_sp/gpt2_sp.py"
    for document in LICENSE dev/REFERENCE.md dev/CHANGELOG.md dev/example_*; do
        echo "644 $document share/doc/gpt2_sp/${document#dev/}"
    done
    [ "$1" = install ] && [ -z "$GPU" ] || {
        library gpt2spcu gpt2_spcu
        echo "755 train_gpt2_spcu bin/train_gpt2_spcu"
        echo "link train_gpt2_sp.1 share/man/man1/train_gpt2_spcu.1"
    }
}
library() {   # name, package
    echo "644 lib$1.a $LIBDIR/lib$1.a"
    echo "755 lib$1.so.$major $LIBDIR/lib$1.so.$VERSION"
    echo "link lib$1.so.$VERSION $LIBDIR/lib$1.so.$major"
    echo "link lib$1.so.$major $LIBDIR/lib$1.so"
    echo "644 $own/$2.pc $LIBDIR/pkgconfig/$2.pc"
}

# Folders that hold nothing of others.
folders="$LIBDIR/cmake/gpt2_sp share/gpt2_sp share/doc/gpt2_sp"

# pkg-config's file of a library. `pkg-config --variable=static NAME` has the flags to link it in statically.
package() {   # package, library, what it is, its static libraries
    cat > $own/"$1".pc <<END
prefix=\${pcfiledir}/$(climb "$LIBDIR/pkgconfig")
libdir=\${prefix}/$LIBDIR
includedir=\${prefix}/include
static=\${libdir}/lib$2.a $4

Name: $1
Description: $3
Version: $VERSION
Libs: -L\${libdir} -l$2
Libs.private: $4
Cflags: -I\${includedir}
END
}

# The targets of a library for CMake: shared and static.
targets() {   # library, name of the shared target, of the static one, its static libraries
    cat <<END
if(EXISTS "\${_gpt2_sp_prefix}/$LIBDIR/lib$1.so.$VERSION")
  add_library(gpt2_sp::$2 SHARED IMPORTED)
  set_target_properties(gpt2_sp::$2 PROPERTIES
    IMPORTED_LOCATION "\${_gpt2_sp_prefix}/$LIBDIR/lib$1.so.$VERSION"
    IMPORTED_SONAME "lib$1.so.$major"
    INTERFACE_INCLUDE_DIRECTORIES "\${_gpt2_sp_prefix}/include")
  add_library(gpt2_sp::$3 STATIC IMPORTED)
  set_target_properties(gpt2_sp::$3 PROPERTIES
    IMPORTED_LOCATION "\${_gpt2_sp_prefix}/$LIBDIR/lib$1.a"
    INTERFACE_INCLUDE_DIRECTORIES "\${_gpt2_sp_prefix}/include"
    INTERFACE_LINK_LIBRARIES "$(echo "$4" | tr -s ' ' ';')")
endif()
END
}
cmake_files() {
    {
        cat <<END
# find_package(gpt2_sp $VERSION), then target_link_libraries(program PRIVATE gpt2_sp::gpt2_sp), or gpt2_sp::static. Where the GPU
# library is installed: gpt2_sp::gpu, gpt2_sp::gpu_static.
if(TARGET gpt2_sp::gpt2_sp)
  return()
endif()
get_filename_component(_gpt2_sp_prefix "\${CMAKE_CURRENT_LIST_DIR}/$(climb "$LIBDIR/cmake/gpt2_sp")" ABSOLUTE)
END
        targets gpt2sp gpt2_sp static "$STATIC_LIBS"
        targets gpt2spcu gpu gpu_static "$GPU_STATIC_LIBS"
        echo 'unset(_gpt2_sp_prefix)'
    } > $own/gpt2_sp-config.cmake
    cat > $own/gpt2_sp-config-version.cmake <<END
# A program that asks for an earlier version of the same major one gets this one.
set(PACKAGE_VERSION "$VERSION")
set(PACKAGE_VERSION_COMPATIBLE FALSE)
if(PACKAGE_FIND_VERSION_MAJOR EQUAL $major AND NOT PACKAGE_FIND_VERSION VERSION_GREATER PACKAGE_VERSION)
  set(PACKAGE_VERSION_COMPATIBLE TRUE)
endif()
if(PACKAGE_FIND_VERSION VERSION_EQUAL PACKAGE_VERSION)
  set(PACKAGE_VERSION_EXACT TRUE)
endif()
END
}

case ${1:-} in
install)
    package gpt2_sp gpt2sp "a trainer for small GPT-2 models on long documents, on the CPU" "$STATIC_LIBS"
    package gpt2_spcu gpt2spcu "a trainer for small GPT-2 models on long documents, on GPUs" "$GPU_STATIC_LIBS"
    cmake_files
    sh dev/man.sh ./train_gpt2_sp > $own/train_gpt2_sp.1
    files install | while read -r mode from to; do
        mkdir -p "$root/${to%/*}"
        case $mode in
        link) ln -sf "$from" "$root/$to" ;;
        *) install -m "$mode" "$from" "$root/$to" ;;
        esac
    done
    echo "installed gpt2_sp $VERSION under $root"
    ;;
uninstall)
    files uninstall | while read -r mode from to; do rm -f "$root/$to"; done
    for folder in $folders; do
        [ ! -d "$root/$folder" ] || rmdir "$root/$folder" 2> /dev/null || echo "$root/$folder holds files of others and stays"
    done
    echo "removed gpt2_sp from $root"
    ;;
*) sed -n '2,/^$/s/^# \{0,1\}//p' "$0" >&2; exit 1 ;;
esac
