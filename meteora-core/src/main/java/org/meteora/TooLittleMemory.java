package org.meteora;

/**
 * Memory that is not there, of the host or of a GPU; the message says what is needed and what is
 * free. A command adds which of its options to lower.
 */
public final class TooLittleMemory extends UserException {
  /** One line that says what was needed and what was free. */
  public TooLittleMemory(String message) {
    super(message);
  }

  /** Whether an exception is libtorch's or a driver's for memory that a GPU or the host lacks. */
  public static boolean isReportedBy(RuntimeException e) {
    var message = String.valueOf(e.getMessage());
    return message.contains("out of memory") || message.contains("can't allocate memory");
  }
}
