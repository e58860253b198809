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

  /** Whether an exception says, ours or libtorch's or a driver's, that memory is lacking. */
  public static boolean isReportedBy(RuntimeException e) {
    var message = String.valueOf(e.getMessage());
    return e instanceof TooLittleMemory
        || message.contains("out of memory")
        || message.contains("can't allocate memory");
  }
}
