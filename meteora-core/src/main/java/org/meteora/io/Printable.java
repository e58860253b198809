package org.meteora.io;

import java.io.FilterOutputStream;
import java.io.IOException;
import java.io.OutputStream;
import java.nio.ByteBuffer;
import java.nio.CharBuffer;
import java.nio.charset.CharsetDecoder;
import java.nio.charset.CodingErrorAction;
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
    return new FilterOutputStream(to) {
      // a byte that is no character's could be an 8-bit control for a terminal that is not UTF-8
      private final CharsetDecoder decoder =
          StandardCharsets.UTF_8.newDecoder().onMalformedInput(CodingErrorAction.REPLACE);

      /** The bytes of a character that is not whole yet. */
      private byte[] held = {};

      @Override
      public void write(int b) throws IOException {
        write(new byte[] {(byte) b}, 0, 1);
      }

      @Override
      public void write(byte[] bytes, int from, int length) throws IOException {
        var in =
            ByteBuffer.allocate(held.length + length).put(held).put(bytes, from, length).flip();
        var out = CharBuffer.allocate(in.remaining());
        decoder.decode(in, out, false);
        held = new byte[in.remaining()];
        in.get(held);
        to.write(escape(out.flip().toString(), true).getBytes(StandardCharsets.UTF_8));
      }

      @Override
      public void close() throws IOException {
        if (held.length > 0) {
          held = new byte[0];
          to.write("\ufffd".getBytes(StandardCharsets.UTF_8));
        }
        to.close();
      }
    };
  }
}
