/** What every part of meteora may throw at its user: {@link org.meteora.UserException}. */
package org.meteora;
