/** One evaluation at several settings. */
package org.meteora.eval.sweep;
