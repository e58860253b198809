package org.meteora.io;

import java.io.IOException;
import java.io.OutputStream;
import java.nio.charset.StandardCharsets;
import java.util.regex.Pattern;

/**
 * Text that others wrote (names in files, prompts, tokens), made harmless for a terminal: control
 * characters that would move the cursor, set the title or fill the clipboard are shown as {@code
 * \\u001b}, and so are the marks that turn the direction of writing.
 */
public final class Printable {
  /** C0 but tab and line feed, DEL, C1, and the marks that reorder text. */
  private static final Pattern HARMFUL =
      Pattern.compile(
          "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\x{61c}\\x{200e}\\x{200f}"
              + "\\x{2028}-\\x{202e}\\x{2066}-\\x{2069}]");

  private Printable() {}

  /** Every control character but tab and line feed escaped. */
  public static String text(String text) {
    return escape(text, false);
  }

  /** As {@link #text}, in one line: line breaks and the blanks around them become one space. */
  public static String line(String text) {
    return text == null ? "" : escape(text.strip().replaceAll("\\s*\\R\\s*", " "), false);
  }

  private static String escape(String text, boolean carriageReturn) {
    return HARMFUL
        .matcher(text)
        .replaceAll(
            found ->
                carriageReturn && found.group().equals("\r")
                    ? "\r"
                    : "\\\\u%04x".formatted((int) found.group().charAt(0)));
  }

  /**
   * Passes UTF-8 on with the same characters escaped, for a stream that ends at a terminal. A
   * carriage return passes: progress bars live by it, and messages have none.
   *
   * @param to gets the bytes; closed and flushed with this one
   */
  public static OutputStream escaping(OutputStream to) {
    return new OutputStream() {
      /** The bytes of a character that is not whole yet. */
      private final byte[] held = new byte[4];

      private int count;
      private int wanted;

      @Override
      public void write(int b) throws IOException {
        write(new byte[] {(byte) b}, 0, 1);
      }

      @Override
      public void write(byte[] bytes, int from, int length) throws IOException {
        int plain = from;
        for (int i = from; i < from + length; i++) {
          int b = bytes[i] & 0xff;
          boolean passes =
              count == 0 && (b >= 0x20 && b < 0x7f || b == '\n' || b == '\t' || b == '\r');
          if (passes) {
            continue;
          }
          to.write(bytes, plain, i - plain);
          plain = i + 1;
          other(b);
        }
        to.write(bytes, plain, from + length - plain);
      }

      private void other(int b) throws IOException {
        if (count > 0 && (b & 0xc0) != 0x80) {
          release(); // cut off: not UTF-8
        }
        if (count == 0) {
          wanted =
              b >= 0xf0 && b < 0xf8 ? 4 : b >= 0xe0 && b < 0xf0 ? 3 : b >= 0xc2 && b < 0xe0 ? 2 : 1;
        }
        held[count++] = (byte) b;
        if (count == wanted) {
          release();
        }
      }

      private void release() throws IOException {
        var text = new String(held, 0, count, StandardCharsets.UTF_8);
        // a byte that is no character's could be an 8-bit control for a terminal that is not UTF-8
        boolean broken = count < wanted || text.indexOf('\ufffd') >= 0 && count == 1;
        if (broken) {
          to.write("\ufffd".getBytes(StandardCharsets.UTF_8));
        } else {
          to.write(escape(text, true).getBytes(StandardCharsets.UTF_8));
        }
        count = 0;
      }

      @Override
      public void flush() throws IOException {
        to.flush();
      }

      @Override
      public void close() throws IOException {
        if (count > 0) {
          release();
        }
        to.close();
      }
    };
  }
}
