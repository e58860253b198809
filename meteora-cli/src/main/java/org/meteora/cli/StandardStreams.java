package org.meteora.cli;

import java.io.BufferedOutputStream;
import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.OutputStream;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import org.meteora.foreign.Functions;
import org.meteora.io.Printable;

/**
 * Standard output and error of the process: UTF-8 whatever the locale; standard output that cannot
 * be written ends the command instead of being passed over; what goes to a terminal holds no
 * control characters that others wrote.
 */
final class StandardStreams {
  private static final int STDOUT = 1;

  private StandardStreams() {}

  /** Standard output cannot be written. Unchecked, because a PrintStream swallows IOExceptions. */
  static final class OutputLost extends RuntimeException {
    private final boolean pipeClosed;

    private OutputLost(IOException cause) {
      super("cannot write standard output: " + cause.getMessage(), cause);
      pipeClosed = String.valueOf(cause.getMessage()).contains("Broken pipe");
    }

    /** The reader has seen enough: {@code | head -1}. */
    boolean pipeClosed() {
      return pipeClosed;
    }
  }

  /** Puts them in the place of {@link System#out} and {@link System#err}. */
  static void install() {
    OutputStream out = checked(new FileOutputStream(FileDescriptor.out));
    if (isTerminal(STDOUT)) {
      out = Printable.escaping(out);
    }
    System.setOut(new PrintStream(new BufferedOutputStream(out), true, StandardCharsets.UTF_8));
    var err = Printable.escaping(new FileOutputStream(FileDescriptor.err));
    System.setErr(new PrintStream(new BufferedOutputStream(err), true, StandardCharsets.UTF_8));
  }

  /** The same stream, whose first failure is {@link OutputLost}; what comes after it is dropped. */
  static OutputStream checked(OutputStream to) {
    return new OutputStream() {
      private boolean lost;

      @Override
      public void write(int b) {
        write(new byte[] {(byte) b}, 0, 1);
      }

      @Override
      public void write(byte[] bytes, int from, int length) {
        try {
          if (!lost) {
            to.write(bytes, from, length);
          }
        } catch (IOException e) {
          lost = true;
          throw new OutputLost(e);
        }
      }
    };
  }

  private static boolean isTerminal(int descriptor) {
    try {
      var isatty = Functions.bind("isatty", "(I)I");
      return (int) isatty.invokeExact(descriptor) == 1;
    } catch (Throwable e) {
      return true; // escaping is the safe side
    }
  }
}
