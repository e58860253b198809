package org.meteora.tensor;

import static java.lang.foreign.ValueLayout.JAVA_BYTE;
import static java.lang.foreign.ValueLayout.JAVA_LONG;

import java.lang.foreign.Arena;
import java.lang.foreign.Linker;
import java.lang.foreign.MemoryLayout;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.SymbolLookup;
import java.lang.invoke.MethodHandle;
import java.nio.charset.StandardCharsets;
import org.meteora.foreign.Functions;

/**
 * What libtorch writes to C++'s standard error. Its C ABI says only that a call failed; the reason,
 * and pages of its own stack, it prints. Here they go into memory instead, so that the reason can
 * be part of an exception. What is not asked for is kept until the process ends, and lost.
 */
final class NativeErrors {
  /** The offset of the C stream in libstdc++'s buffer of standard error. */
  private static final long STREAM = 64;

  /** Where it goes; null where it cannot be redirected. */
  private static final Kept KEPT = redirect();

  /**
   * @param file the C stream
   * @param written pointer and size of what was written, set by {@code flush}
   */
  private record Kept(
      MemorySegment file, MemorySegment written, MethodHandle flush, MethodHandle seek) {}

  private NativeErrors() {}

  /** Starts to keep what is written; once is enough. */
  static void keep() {}

  private static Kept redirect() {
    try {
      var library = SymbolLookup.libraryLookup("libstdc++.so.6", Arena.global());
      var cerr = library.find("_ZSt4cerr").orElseThrow().reinterpret(8);
      long table = cerr.get(JAVA_LONG, 0);
      // std::ios is a virtual base: its offset stands before the table of virtual functions
      long offset = MemorySegment.ofAddress(table - 24).reinterpret(8).get(JAVA_LONG, 0);
      var rdbuf = Functions.bind(library, "_ZNKSt9basic_iosIcSt11char_traitsIcEE5rdbufEv", "(J)A");
      var buffer = (MemorySegment) Functions.call(rdbuf, cerr.address() + offset);
      var stream = MemorySegment.ofAddress(buffer.address() + STREAM).reinterpret(8);
      var standard = Linker.nativeLinker().defaultLookup().find("stderr").orElseThrow();
      if (stream.get(JAVA_LONG, 0) != standard.reinterpret(8).get(JAVA_LONG, 0)) {
        return null; // another C++ library, or someone else was here: leave it as it is
      }
      var written = Arena.global().allocate(MemoryLayout.sequenceLayout(2, JAVA_LONG));
      var open = Functions.bind("open_memstream", "(JJ)A");
      var file = (MemorySegment) Functions.call(open, written.address(), written.address() + 8);
      if (file.address() == 0) {
        return null;
      }
      var flush = Functions.bind("fflush", "(A)I");
      var seek = Functions.bind("fseeko", "(AJI)I");
      stream.set(JAVA_LONG, 0, file.address());
      return new Kept(file, written, flush, seek);
    } catch (Throwable e) {
      return null; // messages then stay on standard error
    }
  }

  /** What was written since the last call, or an empty text. */
  static synchronized String take() {
    if (KEPT == null) {
      return "";
    }
    try {
      if ((int) KEPT.flush().invokeExact(KEPT.file()) != 0) {
        return "";
      }
      long size = KEPT.written().get(JAVA_LONG, 8);
      var bytes = MemorySegment.ofAddress(KEPT.written().get(JAVA_LONG, 0)).reinterpret(size);
      var text = new String(bytes.toArray(JAVA_BYTE), StandardCharsets.UTF_8);
      int status = (int) KEPT.seek().invokeExact(KEPT.file(), 0L, 0);
      return status == 0 ? text : "";
    } catch (Throwable e) {
      return "";
    }
  }

  /** The reason in a text that libtorch printed: without its stack, on one line. */
  static String reason(String printed) {
    int last = printed.lastIndexOf("Exception in aoti_torch: ");
    var text = last < 0 ? printed : printed.substring(last + "Exception in aoti_torch: ".length());
    for (var end : new String[] {"Exception raised from", "\nframe #", "C++ CapturedTraceback"}) {
      int at = text.indexOf(end);
      text = at < 0 ? text : text.substring(0, at);
    }
    return text.strip().replaceAll("\\s+", " ");
  }
}
